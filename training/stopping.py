"""Ask a run to stop: by SIGTERM, SIGUSR1, SIGINT, or a file named STOP in its folder.

Each rank notes what reaches it; the note rides on the all-reduce at the start of a step, so that all
ranks stop before the same step.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOP_FILE = "STOP"
EXIT_STOPPED = 75
"""Exit status of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h)"""


class StopRequest:
    """Whether this rank was asked to stop, and by what."""

    def __init__(self, folder: Path, is_main: bool):
        self._file = folder / STOP_FILE
        self._is_main = is_main
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        """What asks this rank to stop; only the main rank looks for the file."""
        if self._signal is None and self._is_main and self._file.exists():
            return f"the file {self._file}"
        return self._signal

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals. From the second SIGINT on they act as without us: the process ends."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def consume(self) -> None:
        """Remove the file: it was meant for this life of the run."""
        self._file.unlink(missing_ok=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self._is_main:  # not print: the handler may have interrupted one
                os.write(2, b"\nstopping at the end of this step; Ctrl-C again ends at once\n")
