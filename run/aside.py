"""Work that goes on in a process beside the training: the files and drawings of an evaluation."""

import gc
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from disk import end_with_parent
from errors import UserError
from training.stopping import SIGNALS

FORK = multiprocessing.get_context("fork")
LONGEST_S = 900
"""After which the work counts as hung, and the kernel ends it: a run must not wait for ever"""


class Aside:
    """At most one piece of work at a time, which needs what this process has and gives nothing but files.

    A fork, as data workers are: it begins at once, has predictions and dataset without a copy, and leaves
    the device alone. Not a thread: it would hold the interpreter while steps are launched.
    """

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._answers: Connection | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin, after `finish`; where there is no room for another process, it is done here and now.

        Raises:
            OSError, UserError: of work that is done here.
        """
        assert self._process is None, "one at a time"
        answers, answering = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_work, args=(work, answering), name="aside")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it ignores them
        try:
            process.start()
        except OSError:
            work()
        else:
            self._process, self._answers = process, answers
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            answering.close()

    @property
    def begun(self) -> bool:
        """Whether there is work that `finish` has not been called for."""
        return self._process is not None

    def wait(self) -> None:
        """Return when nothing is being done, whatever came of it. From any thread."""
        process = self._process
        if process is not None:
            wait([process.sentinel])

    def finish(self) -> str | None:
        """Wait for the end; why the work came to nothing, None if all is well. From the main thread alone."""
        if self._process is None or self._answers is None:
            return None
        self._process.join()
        try:
            failure: str | None = self._answers.recv()
        except EOFError:
            code = self._process.exitcode or 0
            failure = f"its process ended with {signal.Signals(-code).name if code < 0 else code}"
        self._answers.close()
        self._process = self._answers = None
        return failure


def _work(work: Callable[[], None], answering: Connection) -> None:
    """In the new process. Whether the run is to stop is for the main process to say."""
    end_with_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LONGEST_S)
    torch.set_num_threads(1)  # others of OpenMP are not in a fork, and would be waited for
    gc.disable()  # nothing here frees what is another process's: tensors on the device, data workers
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    failure = None
    try:
        work()
    except (OSError, UserError) as error:
        failure = str(error)
    except Exception as error:  # in this process it would be lost
        failure = repr(error)
    answering.send(failure)
