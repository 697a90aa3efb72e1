"""Ask a run to stop: by SIGTERM, SIGUSR1, SIGINT, SIGHUP, or a file named STOP in its folder.

Each rank notes what reaches it; the note rides on the all-reduce at the start of a step, so that all
ranks stop before the same step.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
STOP_FILE = "STOP"
EXIT_STOPPED = 75
"""Exit status of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h)"""


EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit status after a second SIGINT, as shells have it"""


def heard_signals() -> list[signal.Signals]:
    """Those that ask to stop; nohup has made SIGHUP a signal to be ignored."""
    hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [number for number in SIGNALS if hangup or number != signal.SIGHUP]


@contextmanager
def leaving_at_signals() -> Iterator[None]:
    """Before the first step there is nothing to save: a signal ends the process at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name.encode()
        os.write(2, b"\nstopped by " + name + b" before the first step; nothing was to be saved\n")
        raise SystemExit(EXIT_STOPPED)

    before = {number: signal.signal(number, leave) for number in heard_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether this rank was asked to stop, and by what."""

    def __init__(self, folder: Path, is_main: bool):
        self._file = folder / STOP_FILE
        self._is_main = is_main
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        """What asks this rank to stop; only the main rank looks for the file."""
        if self._signal is None and self._is_main and self._file.is_file():
            return f"the file {self._file}"
        return self._signal

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals. The second SIGINT ends the process, whatever it is doing."""
        before = {number: signal.signal(number, self._note) for number in heard_signals()}
        # Python runs handlers between its own instructions only; a process that waits inside of CUDA
        # or gloo would not hear. The bytes of this pipe are written at once.
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        # Data workers get Ctrl-C as well; theirs must not count as the second one.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=_end_at_second_interrupt, args=(reading,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            writing.close()

    def consume(self) -> None:
        """Remove the file: it was meant for this life of the run."""
        if self._file.is_file():
            self._file.unlink()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT and self._is_main:
            # Not print: the handler may have interrupted one.
            os.write(2, b"\nstopping at the end of this step; Ctrl-C again ends at once\n")


def _end_at_second_interrupt(reading: socket.socket) -> None:
    interrupts = 0
    with reading:
        while content := reading.recv(16):
            interrupts += content.count(signal.SIGINT)
            if interrupts > 1:
                os._exit(EXIT_INTERRUPTED)
