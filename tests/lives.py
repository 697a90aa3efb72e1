"""Lives of a run in processes that may be killed, started by faults/worker.py."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builders import ROOT

LIFE_S = 180
"""A life that takes longer hangs"""


@dataclass
class Strike:
    """A signal that a rank gets at the `call`-th call of a moment of faults/worker.py."""

    moment: str
    call: int
    rank: int = 0
    after: bool = False
    signal: int = signal.SIGKILL


@dataclass
class Lives:
    """Starts lives of runs by faults/worker.py."""

    process: subprocess.Popen
    log: Path
    outputs: list[str] = field(default_factory=list)

    def live(self, arguments: list[str], world: int = 1, strikes: tuple = ()) -> list[int]:
        """Exit statuses by rank; what was printed is in `outputs`."""
        self.log.write_text("")
        life = {
            "arguments": arguments,
            "world": world,
            "log": str(self.log),
            "signals": [vars(strike) for strike in strikes],
        }
        self.process.stdin.write(json.dumps(life) + "\n")
        self.process.stdin.flush()
        statuses = json.loads(self._answer())
        self.outputs.append(self.log.read_text())
        return statuses

    def finish(self, arguments: list[str], world: int = 1) -> None:
        """A life to the end of the run."""
        assert self.live(arguments, world) == [0] * world, self.outputs[-1]

    def _answer(self) -> str:
        ready, _, _ = select.select([self.process.stdout], [], [], LIFE_S)
        if not ready:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"a life took more than {LIFE_S} s:\n{self.log.read_text()}")
        return self.process.stdout.readline()


@contextmanager
def starting_lives(folder: Path) -> Iterator[Lives]:
    """A worker process that imported everything, for the length of the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("faults") / "worker.py")],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lives = Lives(process, folder / "log")
    try:
        assert lives._answer() == "ready\n"
        yield lives
    finally:
        process.stdin.close()
        process.wait(30)
