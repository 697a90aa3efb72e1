"""Checkpoints on disk: `checkpoints/step-000500/{model,state}/`, and links to the last and the best.

A thread of rank 0 copies everything in memory while the next forward and backward pass run, and
writes it into a temporary folder. The manifest, with size and sha256 of every file, is written last;
then all is flushed and renamed. So a kill at any moment leaves the older checkpoints and at most a
temporary folder. All files are safetensors, JSON or YAML: loading one runs no code.
"""

import contextlib
import json
import math
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from disk import flush, flush_all, link, recover, remove_whole, unfinished, whole_folder
from errors import UserError
from settings.keys import Config, config_to_dict
from training.manifest import find_defect, write_manifest
from training.state import CONFIG, STATE, Snapshot, TrainState, load_state

PREFIX = "step-"
DAMAGED = "damaged-"
BEST = "state/best.json"
SPARE_BYTES = 1_000_000
"""Room for headers, state and manifest beside the tensors"""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    metric: float
    step: int


class Checkpoints:
    """The checkpoints folder of one run, what is saved in it, and which evaluation is the best.

    Every rank keeps the same account; only the main one touches files.
    """

    def __init__(self, folder: Path, keep: int, is_main: bool = True):
        self.folder = folder
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
                    link(self.folder / name, step_name(step))
                else:
                    (self.folder / name).unlink(missing_ok=True)

    def give_up(self) -> str | None:
        """The last save came to nothing: it is not there, and cannot be the best. Why, on rank 0."""
        if self.best == self._best_saved != self._best_before:
            self.best = self._best_before
        self._saved, self._best_saved = None, self._best_before
        failure, self.failure = self.failure, None
        return failure

    # --- files, on the main rank ---

    def names(self) -> list[str]:
        """Names of the checkpoints by falling step, without a look at their files."""
        found = [p.name for p in self.folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
        return sorted(found, key=step_of, reverse=True)

    def best_folder(self) -> Path | None:
        """The checkpoint that the link `best` names."""
        place = self.folder / "best"
        return place.resolve() if place.exists() else None

    def find_best(self, folder: Path, same_metric: bool) -> tuple[Best | None, list[str]]:
        """The best evaluation up to the checkpoint `folder`, as far as its checkpoint is here.

        Returns: it, and lines for the log.
        """
        best = read_best(folder)
        if best is None:
            return None, []
        name = step_name(best.step)
        if not same_metric:
            return None, [f"{name} was the best by another eval.metric: not counted"]
        if (self.folder / name).is_dir():
            return best, []
        linked = self.best_folder()  # of before, where the save of the better one failed
        if linked is not None and find_defect(linked) is None:
            older, step = read_best(linked), load_state(linked).step
            if older is not None and older.step == step <= load_state(folder).step:
                return older, []
        return None, [f"{name}, the best checkpoint so far, is not here: not counted"]

    def newest_intact(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files are what its manifest says, and one line per finding.

        Puts right what a kill between two renames left behind, and sets damaged checkpoints aside
        under another name; deletes nothing that was a checkpoint.

        Raises:
            UserError: if there are checkpoints, and every one is damaged; then none is touched.
        """
        notes = self.tidy()
        damaged: dict[str, str] = {}
        for name in self.names():
            defect = find_defect(self.folder / name)
            if defect is None:
                for bad, why in damaged.items():
                    aside = self._set_aside(bad)
                    notes.append(
                        f"{bad} is damaged ({why}): kept as {aside}, the one before is taken"
                    )
                return self.folder / name, notes
            damaged[name] = defect
        damaged |= {path.name: "set aside before" for path in self.folder.glob(f"{DAMAGED}*")}
        if damaged:
            lines = [f"{name}: {why}" for name, why in damaged.items()]
            raise UserError(
                "\n  ".join(
                    [
                        f"{self.folder}: no checkpoint is intact; to train from step 0, choose "
                        "another run.output_dir",
                        *lines,
                    ]
                )
            )
        return None, notes

    def save(
        self,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: TrainState,
        cfg: Config,
        wait: bool = False,
    ) -> None:
        """Begin to copy and write a checkpoint (and wait for it, if `wait`).

        Called on every rank; the others only keep the account, and give no tensors.

        `tensors` must not change before `wait_for_copy` has returned. A save that fails leaves its
        reason in `failure`, and the older checkpoints as they were.
        """
        self._saved = (state.step, state.evaluated_step)
        self._best_before, self._best_saved = self._best_saved, self.best
        if not self._is_main:
            return
        self.wait()
        texts = {
            BEST: json.dumps(self.best and asdict(self.best)) + "\n",
            STATE: state.to_json(),
            CONFIG: yaml.safe_dump(config_to_dict(cfg), sort_keys=False),
        }
        self._copied.clear()
        self._writer = threading.Thread(
            target=self._copy_and_write,
            args=(state.step, self.is_best(state.step), tensors, texts),
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
    ) -> None:
        name = step_name(step)
        try:
            try:
                self._snapshot.take(tensors)
            finally:
                self._copied.set()
            self._check_space()
            with whole_folder(self.folder / name) as temporary:
                for file in (*self._snapshot.files, *texts):
                    (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                for file, copies in self._snapshot.files.items():
                    save_file(copies, temporary / file)
                for file, text in texts.items():
                    (temporary / file).write_text(text)
                flush_all(temporary)
                write_manifest(temporary)
            link(self.folder / "last", name)
            if best:
                link(self.folder / "best", name)
            flush(self.folder)
            with contextlib.suppress(OSError):  # what stays is removed after another save or start
                self._prune()
        except Exception as error:  # in a thread it would be lost
            kept = self.names()
            self.failure = (
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}; "
                f"{f'{kept[0]} is intact' if kept else 'there is none yet'}"
            )

    def _check_space(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = self._snapshot.num_bytes + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free")

    def _prune(self) -> None:
        links = [self.folder / "last", self.folder / "best"]
        protected = {os.readlink(place) for place in links if place.is_symlink()}
        for name in self.names()[self.keep :]:
            if name not in protected:
                remove_whole(self.folder / name)

    def tidy(self) -> list[str]:
        """Finish or undo what a kill interrupted; one line per checkpoint that was being written."""
        return [
            f"{place.name} was being written when the run ended: removed"
            for place in unfinished(self.folder)
            if recover(place)
        ]

    def _set_aside(self, name: str) -> str:
        taken = {p.name for p in self.folder.glob(f"{DAMAGED}*")}
        choices = (f"{DAMAGED}{name}{f'-{n}' if n else ''}" for n in range(len(taken) + 1))
        aside = next(choice for choice in choices if choice not in taken)
        (self.folder / name).rename(self.folder / aside)
        return aside


def step_name(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"{PREFIX}{step:06d}"


def step_of(name: str) -> int:
    """The step in a checkpoint's name."""
    return int(name[len(PREFIX) :])


def read_best(folder: Path) -> Best | None:
    """The best evaluation up to a checkpoint.

    Raises:
        UserError: if the folder is no checkpoint.
    """
    try:
        content = json.loads((folder / BEST).read_text())
        return None if content is None else Best(**content)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: not a checkpoint that can be read here: {error}") from error
