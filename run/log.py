"""The run folder and its logs: console, train.log, metrics.jsonl, tracker."""

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from disk import write_whole
from errors import UserError, printable_lines
from run.progress import Plan, clock
from run.tracker import Tracker, check_tracker
from settings.keys import Config, RunConfig
from training.state import TrainState

LOCK = ".lock"
DONE = "DONE"
"""File in the folder of a run that was trained and exported to its end"""
WRITTEN = {
    "config.yaml",
    "metrics.jsonl",
    "train.log",
    "samples",
    "eval",
    "results.png",
    "report.html",
}
"""What a run writes from its beginning, run.json before all"""
RESULTS = {"export", DONE}
"""What a run writes at its end"""


def claim_run_folder(run: RunConfig) -> IO[str] | None:
    """Check the run folder, and keep other runs out of it as long as the result is held.

    Raises:
        UserError: naming the folder and what to do.
    """
    check_tracker(run.tracker)
    check_run_folder(run)
    return lock_run_folder(Path(run.output_dir))


@contextlib.contextmanager
def leaving_no_folder(run: RunConfig) -> Iterator[None]:
    """Around a start: a folder that it made, and wrote nothing into, goes if it fails."""
    folder = Path(run.output_dir)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(
            OSError, UserError
        ):  # another run has written into it, or begins there
            if folder in made and {path.name for path in folder.iterdir()} <= {LOCK}:
                lock = lock_run_folder(folder)  # noqa: F841 (held until the end)
                (folder / LOCK).unlink(missing_ok=True)
            for place in made:
                place.rmdir()
        raise


def check_run_folder(run: RunConfig) -> None:
    """Refuse to write into a folder that holds something, unless the run is resumed.

    Raises:
        UserError: naming the folder and what to do.
    """
    folder = Path(run.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output_dir {folder}: is a file")
    if run.resume != "never" and folder.is_dir():
        refuse_foreign(folder)
    if run.resume == "never" and folder.is_dir() and {p.name for p in folder.iterdir()} - {LOCK}:
        if (folder / DONE).is_file():
            raise UserError(
                f"run.output_dir {folder}: holds a finished run; choose another folder, or train it longer with --run.resume "
                "auto --run.allow_changes true and a larger --train.steps"
            )
        raise UserError(
            f"run.output_dir {folder}: is not empty; choose another folder, or continue that run "
            "with --run.resume auto"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"run.output_dir {folder}: cannot be written: {error}") from error
    if run.resume not in ("never", "auto") and not Path(run.resume).is_dir():
        raise UserError(f"run.resume {run.resume}: no such checkpoint folder (or 'never', 'auto')")


def refuse_foreign(folder: Path) -> None:
    """A run that begins in a folder without checkpoints may replace what such a run left, and nothing
    else.

    Raises:
        UserError: naming what would be lost.
    """
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        return
    present = {path.name for path in folder.iterdir()}
    begun = "run.json" in present  # before its first checkpoint, and may begin anew
    lost = sorted(present & (RESULTS if begun else {*RESULTS, *WRITTEN}))
    if lost:
        raise UserError(
            f"run.output_dir {folder}: has no checkpoint to resume from, and holds {lost[0]}, which a new run "
            "would replace; choose another folder, or move it away"
        )


def lock_run_folder(folder: Path) -> IO[str] | None:
    """Keep other runs out of the folder for as long as this process lives and holds the result.

    Returns: None where the file system has no locks.

    Raises:
        UserError: if another process holds it.
    """
    stream = (folder / LOCK).open("w")
    try:
        # Of the POSIX kind: data workers, which may outlive a kill by seconds, do not inherit it.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        stream.close()
        raise UserError(
            f"run.output_dir {folder}: another process is training into it; wait for its end, or "
            "choose another folder"
        ) from error
    except OSError:
        return None
    return stream


def done_text(step: int) -> str:
    """Content of DONE."""
    return f"{step} steps\n"


class RunLog:
    """Logs of one run. On every rank but the main one, all calls do nothing."""

    def __init__(self, accelerator: Accelerator, cfg: Config, num_steps: int, state: TrainState):
        self.active = accelerator.is_main_process
        self.folder = Path(cfg.run.output_dir)
        self.num_steps = num_steps
        self._tracker: Tracker | None = None
        self._bar: tqdm | None = None
        self._started = time.monotonic()
        self._steps = 0
        self._start_step = state.step
        self._plan = Plan(num_steps - state.step, self._started)
        if not self.active:
            return
        self._metrics = self.folder / "metrics.jsonl"
        self._text = self.folder / "train.log"
        self._held: dict[Path, str] = {}
        self._drop_later_than(state)
        if cfg.run.tracker != "none":
            self._tracker = Tracker(accelerator, cfg, state.tracker_run, self._metrics)
            if self._tracker.shown_by is not None:
                self.say(f"tracker     {self._tracker.shown_by}")

    def say(self, text: str = "") -> None:
        """A line for people: console and train.log."""
        if self.active:
            text = printable_lines(text)
            try:
                tqdm.write(text)
            except OSError:
                # Nobody reads the console any more, or it is full: train.log has it all.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._append(self._text, text + "\n")

    def start_bar(self) -> None:
        """Show the progress bar, where the console is a terminal."""
        if self.active:
            self._plan.begun = time.monotonic()
            self._bar = tqdm(
                total=self.num_steps,
                initial=self._start_step,
                unit="step",
                disable=None,
                leave=False,
            )

    def advance(self) -> None:
        """One step is done. After the first ones it is known how long the others will take."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.update()
        self._steps += 1
        if (told := self._plan.after(self._steps, time.monotonic())) is not None:
            self.say(told)

    def evaluation_bar(self, images: int, processes: int) -> Callable[[int], object]:
        """Show the progress of an evaluation, where the console is a terminal.

        Returns: what is to be told how many images this process has predicted. The bar ends with the last of them.
        """
        if not self.active:
            return lambda num: None
        bar = tqdm(total=images, unit=" images", desc="evaluating", disable=None, leave=False)

        def shown(num: int) -> None:
            bar.update(min(num * processes, images - bar.n))
            if bar.n >= images:
                bar.close()

        return shown

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Append numbers to metrics.jsonl, then pass them to the tracker."""
        if not self.active:
            return
        self._append(self._metrics, json.dumps({"step": step, **values}) + "\n")
        if self._tracker is not None:
            self._tracker.metrics(step, values)

    def pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Pass pictures, by name, to the tracker."""
        if self._tracker is not None:
            self._tracker.pictures(step, files)

    def histograms(self, step: int, counts: Mapping[str, np.ndarray]) -> None:
        """Pass numbers by parts of [0, 1], by name, to the tracker."""
        if self._tracker is not None:
            self._tracker.histograms(step, counts)

    def step_line(self, step: int, values: dict[str, Any], memory_mb: float | None) -> None:
        """The console line of a log step; `values` as in metrics.jsonl."""
        if not self.active:
            return
        left = self.num_steps - step
        seconds = (time.monotonic() - self._started) / max(1, step - self._start_step) * left
        memory = f"  mem {memory_mb:6.0f} MB" if memory_mb is not None else ""
        self.say(
            f"step {step:>{len(str(self.num_steps))}}/{self.num_steps}"
            f"  loss {values['train/loss']:8.4f}"
            f"  lr {values['train/lr']:.2e}"
            f"  grad_norm {values['train/grad_norm']:8.2f}"
            f"  {values['time/images_per_s']:6.1f} img/s"
            f"  data {values['time/data_wait_%']:4.1f}%{memory}"
            f"  eta {clock(seconds)}"
        )

    def is_written(self) -> bool:
        """Whether every line is on disk; tries again to write those that were held back."""
        if self.active:
            for file in list(self._held):
                self._append(file, "")
        return not (self.active and self._held)

    def close(self) -> None:
        """Finish the tracker and close the files.

        Raises:
            UserError: if lines could not be written.
        """
        if not self.active:
            return
        if self._bar is not None:
            self._bar.close()
        if self._tracker is not None:
            self._tracker.finish()
        if not self.is_written():
            files = ", ".join(str(file) for file in self._held)
            raise UserError(
                f"{files}: lines could not be written. Make room, then go on with --run.resume auto"
            )

    def _append(self, file: Path, text: str) -> None:
        """Add to a file. What a full disk refuses is held back, and added with the next text."""
        held = self._held.pop(file, "")
        try:
            with file.open("ab") as stream:
                size = stream.tell()
                try:
                    stream.write((held + text).encode())
                    stream.flush()
                except OSError:
                    stream.truncate(size)  # no half lines
                    raise
        except OSError as error:
            self._held[file] = held + text
            if text and not held:
                tqdm.write(f"warning: {file} cannot be written for now: {error}")

    def _drop_later_than(self, state: TrainState) -> None:
        """What came after the checkpoint is done, and logged, again."""
        if not self._metrics.is_file():
            return
        lines = self._metrics.read_bytes().splitlines()  # whatever bytes are in it
        kept = [line for line in lines if _is_before(line, state)]
        if len(kept) < len(lines):
            write_whole(self._metrics, b"".join(line + b"\n" for line in kept))
            self.say(
                f"metrics.jsonl: {len(lines) - len(kept)} lines after step {state.step} will be "
                "made anew"
            )


def _is_before(line: bytes, state: TrainState) -> bool:
    """Whether a line of metrics.jsonl was made before the checkpoint of `state`."""
    try:
        values = json.loads(line)
        evaluated = any(key.startswith("eval/") for key in values)
        return bool(values["step"] <= (state.evaluated_step if evaluated else state.step))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # torn by a kill, or no line of ours
