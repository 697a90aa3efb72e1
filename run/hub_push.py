"""Uploads of the best checkpoint so far while training goes on, by a process of its own."""

import contextlib
import subprocess
import sys
from pathlib import Path

from disk import ROOT, recover
from settings.keys import HubConfig
from training.shelf import step_name

LOG, EXPORT = "hub.log", "export-best"
ENDING_S = 10.0


class BestPusher:
    """At most one upload at a time; a better one that comes meanwhile follows it. On rank 0 alone.

    The process is `python -m tools.export CHECKPOINT --push`, which waits for the checkpoint to be whole, reads nothing
    but it, and leaves device and dataset alone. Whatever becomes of it, training goes on; its words are in hub.log.
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
        self._next = None
        with contextlib.suppress(OSError), (self._folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def finish(self) -> None:
        """End an upload that is going on: the last one, of the whole export, follows."""
        self._next = None
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        recover(self._folder / EXPORT)
