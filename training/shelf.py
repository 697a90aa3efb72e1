"""The checkpoints that lie in a folder: found by looking, since links and names may be missing."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk import link, recover, unfinished
from errors import UserError
from settings.keys import Config
from settings.plain_yaml import load_plain
from settings.walk import config_to_dict
from training.manifest import find_defect
from training.state import CONFIG, STATE, load_state
from training.validity import check_best, check_sections

PREFIX = "step-"
DAMAGED = "damaged-"
BEST = "state/best.json"
MOST_SKIPPED = 1000
"""More samples per step than a thousand batches, which only skipped steps could have seen, are wrong"""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    metric: float
    step: int


class Shelf:
    """What lies in a folder of checkpoints. For the main rank alone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """Names of the checkpoints by falling step, without a look at their files."""
        found = [p.name for p in self.folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
        return sorted(found, key=step_of, reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        names = self.names()
        return self.folder / names[0] if names else None

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
            defect = find_flaw(self.folder / name)
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
        # Where the save of the better one failed, one before is still there.
        earlier = [self.folder / n for n in self.names() if step_of(n) < load_state(folder).step]
        intact = [read_best(place) for place in earlier if find_flaw(place) is None]
        here = [b for b in intact if b is not None and (self.folder / step_name(b.step)).is_dir()]
        if here:
            return max(here, key=lambda b: b.metric), []
        return None, [f"{name}, the best checkpoint so far, is not here: not counted"]

    def tidy(self) -> list[str]:
        """Finish or undo what a kill interrupted, and what a copy made of links; a line for each."""
        notes = [
            f"{place.name} was being written when the run ended: removed"
            for place in unfinished(self.folder)
            if recover(place)
        ]
        for place in (self.folder / "last", self.folder / "best"):
            if place.is_dir() and not place.is_symlink():  # a copy that followed links
                notes.append(f"{place.name} is a folder and no link: now {self._renamed(place)}")
        return notes

    def _renamed(self, copy: Path) -> str:
        """Give a checkpoint that stands in the place of a link the name of its step, if it is free."""
        name = f"copied-{copy.name}"
        if (
            find_flaw(copy) is None
            and not (self.folder / step_name(load_state(copy).step)).exists()
        ):
            name = step_name(load_state(copy).step)
        return self._rename_free(copy, name)

    def _set_aside(self, name: str) -> str:
        return self._rename_free(self.folder / name, f"{DAMAGED}{name}")

    def _rename_free(self, place: Path, name: str) -> str:
        """Rename to `name`, or to that with the first number that is free."""
        choices = (f"{name}{f'-{n}' if n else ''}" for n in range(len(list(self.folder.iterdir()))))
        free = next(choice for choice in choices if not (self.folder / choice).exists())
        place.rename(self.folder / free)
        return free


def step_name(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"{PREFIX}{step:06d}"


def step_of(name: str) -> int:
    """The step in a checkpoint's name."""
    return int(name[len(PREFIX) :])


def point(place: Path, name: str) -> None:
    """Make or move a link, a convenience for people: file systems without links do without."""
    with contextlib.suppress(OSError):
        link(place, name)


def find_flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files or with what stands in them; None if nothing is.

    Tensors are looked at when they are loaded, since what fits depends on the model.

    Raises:
        UserError: if they cannot be read at present, which says nothing about them.
    """
    defect = find_defect(folder)
    if defect is not None:
        return defect
    try:
        best, state, cfg = read_best(folder), load_state(folder), read_config(folder)
    except UserError as error:
        return str(error).removeprefix(f"{folder}/")
    if best is not None and best.step > state.step:
        return f"{BEST}: the best step {best.step} is after step {state.step}"
    if folder.name.startswith(PREFIX) and folder.name != step_name(state.step):
        return f"{STATE}: step {state.step} in a checkpoint that is called {folder.name}"
    size = cfg["train"]["global_batch_size"]
    if state.samples_seen % size or state.samples_seen > (state.step + 1) * size * MOST_SKIPPED:
        return f"{STATE}: samples_seen {state.samples_seen} in step {state.step} of {size} images"
    return None


def read_best(folder: Path) -> Best | None:
    """The best evaluation up to a checkpoint.

    Raises:
        UserError: if the folder is no checkpoint.
    """
    try:
        content = json.loads((folder / BEST).read_bytes())
        check_best(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / BEST}: not a checkpoint's that can be read: {error}") from error
    return None if content is None else Best(**content)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint, with today's defaults for keys it does not have.

    Raises:
        UserError: if it is not one.
    """
    try:
        return check_sections(load_plain(folder / CONFIG), config_to_dict(Config()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / CONFIG}: not a checkpoint's that can be read: {error}"
        ) from error
