"""Checkpoints on disk: `checkpoints/step-000500/{model,state}/`, and links to the last and the best.

A thread of rank 0 copies everything in memory while the next forward and backward pass run, and
writes it into a temporary folder. The manifest, with size and sha256 of every file, is written last;
then all is flushed and renamed. So a kill at any moment leaves the older checkpoints and at most a
temporary folder. All files are safetensors, JSON or YAML: loading one runs no code.
"""

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from disk import flush, flush_all, remove_whole, whole_folder
from settings.keys import Config
from settings.walk import config_to_dict
from training.manifest import write_manifest
from training.shelf import BEST, Best, Shelf, point, step_name
from training.state import AVERAGE, CONFIG, OPTIMIZER, STATE, WEIGHTS, Snapshot, TrainState
from training.validity import check_finite

SPARE_BYTES = 1_000_000
"""Room for headers, state and manifest beside the tensors"""


class Checkpoints(Shelf):
    """The checkpoints folder of one run, what is saved in it, and which evaluation is the best.

    Every rank keeps the same account; only the main one touches files.
    """

    def __init__(self, folder: Path, keep: int, is_main: bool = True):
        super().__init__(folder)
        self.keep = keep
        self.failure: str | None = None
        """Why the last save came to nothing, on the main rank"""
        self.best: Best | None = None
        self._is_main = is_main
        self._saved: tuple[int, int] | None = None
        """(step, evaluated step) of the newest checkpoint in the folder"""
        self._best_saved: Best | None = None
        """With the last save"""
        self._best_before: Best | None = None
        """Before it"""
        self._snapshot = Snapshot()
        self._writer: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()

    # --- the account, on every rank ---

    def record(self, metric: float | None, step: int) -> None:
        """Note an evaluation; None and NaN are never the best."""
        if metric is None or math.isnan(metric):
            return
        if self.best is None or metric > self.best.metric:
            self.best = Best(metric, step)

    def is_best(self, step: int) -> bool:
        """Whether the evaluation of `step` is the best one so far."""
        return self.best is not None and self.best.step == step

    def is_saved(self, state: TrainState) -> bool:
        """Whether the state is in the folder already, or being written."""
        return self._saved == (state.step, state.evaluated_step)

    def go_on_from(self, folder: Path | None, state: TrainState, best: Best | None) -> None:
        """Begin where the checkpoint in `folder` (None: a fresh start) ended."""
        self.best = self._best_saved = best
        own = folder is None or folder.parent.resolve() == self.folder.resolve()
        self._saved = (state.step, state.evaluated_step) if own else None
        if folder is not None and self._is_main:
            for name, step in (("last", state.step), ("best", best.step if best else None)):
                if step is not None and (self.folder / step_name(step)).is_dir():
                    point(self.folder / name, step_name(step))
                elif (self.folder / name).is_symlink():
                    (self.folder / name).unlink()

    def give_up(self) -> str | None:
        """The last save came to nothing: it is not there, and cannot be the best. Why, on rank 0."""
        if self.best == self._best_saved != self._best_before:
            self.best = self._best_before
        self._saved, self._best_saved = None, self._best_before
        failure, self.failure = self.failure, None
        return failure

    # --- files, on the main rank ---

    def best_folder(self) -> Path | None:
        """The checkpoint of the best evaluation."""
        if self.best is None or not (self.folder / step_name(self.best.step)).is_dir():
            return None
        return self.folder / step_name(self.best.step)

    def save(
        self,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: TrainState,
        cfg: Config,
        wait: bool = False,
        refused: str | None = None,
        after: Callable[[], None] = lambda: None,
        copied: bool = False,
    ) -> None:
        """Begin to copy and write a checkpoint (and wait for it, if `wait`).

        Called on every rank; the others only keep the account, and give no tensors.

        Args:
            refused: why this state must not be saved, on the main rank; it is then a failed save.
            after: waits for what else has to be on disk before a checkpoint says that it was done.
            copied: whether the tensors are copies of their own, which lie in main memory and nobody changes; they are
                given up when they are written.

        `tensors` must not change before `wait_for_copy` has returned. A save that fails leaves its
        reason in `failure`, and the older checkpoints as they were.
        """
        self._saved = (state.step, state.evaluated_step)
        self._best_before, self._best_saved = self._best_saved, self.best
        if not self._is_main:
            return
        self.wait()
        if refused is not None:
            self.failure = self._failed(state.step, refused)
            return
        texts = {
            BEST: json.dumps(self.best and asdict(self.best)) + "\n",
            STATE: state.to_json(),
            CONFIG: yaml.safe_dump(config_to_dict(cfg), sort_keys=False),
        }
        self._copied.clear()
        self._writer = threading.Thread(
            target=self._copy_and_write,
            args=(
                *(state.step, self.is_best(state.step), tensors, texts, self._protected(), after),
                copied,
            ),
            name="checkpoint",
        )
        self._writer.start()
        if wait:
            self.wait()

    def wait_for_copy(self) -> None:
        """Return when training may change what is being saved."""
        self._copied.wait()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _copy_and_write(
        self,
        step: int,
        best: bool,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        texts: Mapping[str, str],
        protected: set[str],
        after: Callable[[], None],
        copied: bool,
    ) -> None:
        name = step_name(step)
        try:
            try:
                if copied:
                    self._snapshot.files = {file: dict(own) for file, own in tensors.items()}
                else:
                    self._snapshot.take(tensors)
            finally:
                self._copied.set()
            self._check_finite()
            self._check_space()
            with whole_folder(self.folder / name) as temporary:
                for file in (*self._snapshot.files, *texts):
                    (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                for file, copies in self._snapshot.files.items():
                    save_file(copies, temporary / file)
                for file, text in texts.items():
                    (temporary / file).write_text(text)
                flush_all(temporary)
                after()
                write_manifest(temporary)
            point(self.folder / "last", name)
            if best:
                point(self.folder / "best", name)
            flush(self.folder)
            with contextlib.suppress(OSError):  # what stays is removed after another save or start
                self._prune(protected)
        except OSError as error:
            self.failure = self._failed(step, f"{error}. Make room")
        except Exception as error:  # in a thread it would be lost
            self.failure = self._failed(step, str(error))
        if copied:
            self._snapshot.files = {}

    def _failed(self, step: int, why: str) -> str:
        kept = self.names()
        intact = f"{kept[0]} is intact" if kept else "there is none yet"
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({intact}): {why}"
        )

    def _check_finite(self) -> None:
        """A checkpoint of weights that are no numbers would be worth nothing, and could be the best."""
        for file in (WEIGHTS, AVERAGE, OPTIMIZER):
            for name, tensor in self._snapshot.files.get(file, {}).items():
                try:
                    check_finite(name, tensor)
                except ValueError as error:
                    raise ValueError(f"{file}: {error}. Lower optim.lr") from error

    def _check_space(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = self._snapshot.num_bytes + SPARE_BYTES
        disk = shutil.disk_usage(self.folder)
        if disk.free < needed and disk.total:  # some file systems say nothing about themselves
            raise OSError(f"it takes {needed / 1e6:.0f} MB, and {disk.free / 1e6:.0f} MB are free")

    def _protected(self) -> set[str]:
        """The best as it is now, and the one before it, which counts again if this save fails.

        Told to the thread that writes: an evaluation may find a new best meanwhile.
        """
        return {step_name(best.step) for best in (self.best, self._best_before) if best is not None}

    def _prune(self, protected: set[str]) -> None:
        for name in self.names()[self.keep :]:
            if name not in protected:
                remove_whole(self.folder / name)
