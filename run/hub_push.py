"""Uploads of the best checkpoint so far while training goes on, by a process of its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from disk import ROOT, recover
from run.log import RunLog
from settings.keys import HubConfig
from training.shelf import step_name

LOG, EXPORT = "hub.log", "export-best"
ENDING_S = 10.0
PATIENCE_S = 10.0
"""Of a run that ends, with an upload that goes on: who stops it does not wait for long"""


class BestPusher:
    """At most one upload at a time; a better one that comes meanwhile follows it. On rank 0 alone.

    The process is `python -m tools.export CHECKPOINT --push`, which waits for the checkpoint to be whole, reads nothing
    but it, and leaves device and dataset alone. Whatever becomes of it, training goes on; its words are in hub.log.
    It ends with the run, however that ends.
    """

    def __init__(self, folder: Path, cfg: HubConfig, repo_id: str | None):
        """
        Args:
            folder: of the run. repo_id: where to push to; None: nowhere.
        """
        self._folder = folder
        self._cfg = cfg
        self._repo_id = repo_id if cfg.during else None
        self._process: subprocess.Popen[bytes] | None = None
        self._next: int | None = None
        self._step: int | None = None
        """What is uploaded"""

    def begin(self, step: int | None) -> None:
        """After an evaluation: upload the checkpoint of a step that is the best so far, if nothing is being uploaded;
        else it follows when the next evaluation is made.

        Args:
            step: None if it is not the best.
        """
        if self._repo_id is None:
            return
        self._next = self._next if step is None else step
        busy = self._process is not None and self._process.poll() is None
        if busy or self._next is None:
            return
        checkpoint = self._folder.resolve() / "checkpoints" / step_name(self._next)
        command = [sys.executable, "-m", "tools.export", str(checkpoint), "--push", "--wait"]
        command += ["--without_data", "--out", str(self._folder.resolve() / EXPORT)]
        command += ["--hub.push", "true", "--hub.repo_id", str(self._repo_id)]
        command += ["--hub.private", str(self._cfg.private).lower()]
        command += ["--with_parent", str(os.getpid())]
        self._step, self._next = self._next, None
        with contextlib.suppress(OSError), (self._folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the run, which ends it
            )

    def finish(self, patience_s: float = 0.0) -> int | None:
        """End an upload that is going on, after at most so many seconds in which it may be done.

        Returns: the step of the last one, if it was not done.
        """
        self._next = None
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                recover(self._folder / EXPORT)
        return self._step if process.returncode else None


@contextlib.contextmanager
def leaving_no_upload(pusher: BestPusher, log: RunLog, folder: Path) -> Iterator[None]:
    """Around the training: an upload that goes on when it ends is given a moment, and ended. On rank 0 it is said how it
    is made again."""
    try:
        yield
    finally:
        step = pusher.finish(PATIENCE_S)
        if step is not None:
            log.say(
                f"the upload of step {step} was not done ({LOG}); `python -m tools.export {folder} --push` uploads the "
                "best checkpoint, and so does a run that goes on"
            )
