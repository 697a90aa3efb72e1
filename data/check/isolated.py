"""A function over many items in worker processes, where a crash or a hang loses one item only."""

import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Lost:
    """An item that ended its worker, or was given up."""

    reason: str
    died: bool = False
    """With its worker; another one may end well, if what ended that was none of the item's doing"""


class _Worker:
    """A process that works on one item at a time."""

    def __init__(self, function: Callable[[int], Any]):
        context = multiprocessing.get_context()
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(target=_work, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()  # from here on the worker's end is open in the worker only
        self.item = -1
        self.deadline = 0.0

    def give(self, item: int, longest_s: float) -> None:
        self.item = item
        self.deadline = time.monotonic() + longest_s
        self.connection.send(item)

    def take(self) -> Any:
        """The result; Lost where the worker has died over it."""
        try:
            succeeded, result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return Lost(f"the process that decoded it died ({name})", died=True)
        if not succeeded:
            raise RuntimeError(f"a worker failed on item {self.item}:\n{result}")
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def isolated(
    function: Callable[[int], Any], num: int, workers: int, longest_s: Callable[[int], float]
) -> Iterator[tuple[int, Any]]:
    """(item, function(item)) of the items 0 ... num - 1, in the order in which they are done.

    Args:
        function: what to do in a worker; its result is pickled.
        workers: number of processes. longest_s: of an item; if it takes longer it is given up, s.

    Yields:
        A `Lost` instead of the result where two workers died one after the other, or one was too slow.
    """
    todo = iter(range(num))
    team: list[_Worker] = []
    second_tries: set[int] = set()
    try:
        for item in _first(todo, workers):
            team.append(_Worker(function))
            team[-1].give(item, longest_s(item))
        while team:
            patience = min(worker.deadline for worker in team) - time.monotonic()
            ready = wait([worker.connection for worker in team], max(0.0, patience))
            for worker in list(team):
                if worker.connection in ready:
                    result = worker.take()
                elif time.monotonic() > worker.deadline:
                    result = Lost(f"decoding took longer than {longest_s(worker.item):g} s")
                else:
                    continue
                done = worker.item
                again = isinstance(result, Lost) and result.died and done not in second_tries
                if again:
                    second_tries.add(done)
                following = done if again else next(todo, None)
                if isinstance(result, Lost) or following is None:
                    worker.end()
                    team.remove(worker)
                if following is not None:
                    if worker not in team:
                        worker = _Worker(function)
                        team.append(worker)
                    worker.give(following, longest_s(following))
                if not again:
                    yield done, result
    finally:
        for worker in team:
            worker.end()


def _first(items: Iterator[int], num: int) -> list[int]:
    return [item for _, item in zip(range(num), items, strict=False)]


def _work(function: Callable[[int], Any], connection: Connection) -> None:
    """The life of a worker: items in, results out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print without naming the image
    warnings.simplefilter("ignore")
    parent = os.getppid()
    while True:
        while not connection.poll(5):
            if os.getppid() != parent:  # killed: siblings hold its end of the pipe open
                return
        item = connection.recv()
        try:
            result = (True, function(item))
        except Exception:
            result = (False, traceback.format_exc())
        connection.send(result)
