"""Checkpoints on disk: `checkpoints/step-000500/{model,state}/`, and links to the last and the best.

A thread of rank 0 copies everything in memory while the next forward and backward pass run, and
writes it into a temporary folder. The manifest, with size and sha256 of every file, is written last;
then all is flushed and renamed. So a kill at any moment leaves the older checkpoints and at most a
temporary folder. All files are safetensors, JSON or YAML: loading one runs no code.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from errors import UserError
from settings.keys import Config, config_to_dict
from training.state import CONFIG, STATE, Snapshot, TrainState

PREFIX = "step-"
WRITING, REPLACED, REMOVING = ".writing-", ".replaced-", ".removing-"
DAMAGED = "damaged-"
MANIFEST = "manifest.json"
SPARE_BYTES = 1_000_000
"""Room for headers, state and manifest beside the tensors"""


class Checkpoints:
    """The checkpoints folder of one run. All methods are for rank 0 alone."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self.failure: str | None = None
        """Why the last save came to nothing"""
        self._snapshot = Snapshot()
        self._writer: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()

    def names(self) -> list[str]:
        """Names of the checkpoints by falling step, without a look at their files."""
        found = [p.name for p in self.folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
        return sorted(found, key=step_of, reverse=True)

    def best(self) -> Path | None:
        """The checkpoint that the link `best` names."""
        link = self.folder / "best"
        return link.resolve() if link.exists() else None

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

    def link(self, state: TrainState) -> None:
        """Point `last` and `best` to the checkpoints of `state`, after a resume."""
        for name, step in (("last", state.step), ("best", state.best_step)):
            if step is not None and (self.folder / step_name(step)).is_dir():
                _link(self.folder / name, step_name(step))
            else:
                (self.folder / name).unlink(missing_ok=True)

    def save(
        self,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: TrainState,
        cfg: Config,
        wait: bool = False,
    ) -> None:
        """Begin to copy and write a checkpoint (and wait for it, if `wait`).

        `tensors` must not change before `wait_for_copy` has returned. A save that fails leaves its
        reason in `failure`, and the older checkpoints as they were.
        """
        self.wait()
        texts = {
            STATE: state.to_json(),
            CONFIG: yaml.safe_dump(config_to_dict(cfg), sort_keys=False),
        }
        self._copied.clear()
        self._writer = threading.Thread(
            target=self._copy_and_write,
            args=(state.step, state.best_step == state.step, tensors, texts),
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
        temporary = self.folder / f"{WRITING}{name}"
        try:
            try:
                self._snapshot.take(tensors)
            finally:
                self._copied.set()
            self._check_space()
            shutil.rmtree(temporary, ignore_errors=True)
            for file in (*self._snapshot.files, *texts):
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            for file, copies in self._snapshot.files.items():
                save_file(copies, temporary / file)
            for file, text in texts.items():
                (temporary / file).write_text(text)
            _flush(temporary)
            write_manifest(temporary)
            self._publish(temporary, name, best)
            with contextlib.suppress(OSError):  # what stays is removed after another save or start
                self._prune()
        except Exception as error:  # in a thread it would be lost
            shutil.rmtree(temporary, ignore_errors=True)
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

    def _publish(self, temporary: Path, name: str, best: bool) -> None:
        """Give a complete checkpoint its name, then move the links."""
        final, replaced = self.folder / name, self.folder / f"{REPLACED}{name}"
        if final.exists():  # the same step again, now with its evaluation
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        temporary.rename(final)
        _flush_one(self.folder)
        _link(self.folder / "last", name)
        if best:
            _link(self.folder / "best", name)
        _flush_one(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self) -> None:
        links = [self.folder / "last", self.folder / "best"]
        protected = {os.readlink(link) for link in links if link.is_symlink()}
        for name in self.names()[self.keep :]:
            if name not in protected:
                # Renamed first: a kill meanwhile must not leave half a checkpoint under its name.
                removing = self.folder / f"{REMOVING}{name}"
                shutil.rmtree(removing, ignore_errors=True)
                (self.folder / name).rename(removing)
                shutil.rmtree(removing)

    def tidy(self) -> list[str]:
        """Finish or undo what a kill interrupted; one line per checkpoint that was being written."""
        notes = []
        for leftover in sorted(self.folder.glob(".*-step-*")):
            kind, _, number = leftover.name.partition(f"-{PREFIX}")
            name = f"{PREFIX}{number}"
            if f"{kind}-" == REPLACED and not (self.folder / name).exists():
                leftover.rename(self.folder / name)
            elif f"{kind}-" in (WRITING, REPLACED, REMOVING):
                shutil.rmtree(leftover)
                if f"{kind}-" == WRITING:
                    notes.append(f"{name} was being written when the run ended: removed")
        return notes

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


def write_manifest(folder: Path) -> None:
    """Write size and sha256 of all files of a checkpoint, and flush it."""
    files = {
        file: {"bytes": (folder / file).stat().st_size, "sha256": _sha256(folder / file)}
        for file in _files(folder)
    }
    (folder / MANIFEST).write_text(_manifest_text(files))
    _flush_one(folder / MANIFEST)
    _flush_one(folder)


def find_defect(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are as they were written.

    Raises:
        UserError: if they cannot be read at present, which says nothing about them.
    """
    try:
        text = (folder / MANIFEST).read_text()
        listed = json.loads(text)["files"]
        if text != _manifest_text(listed):
            return f"{MANIFEST} was changed"
        present = set(_files(folder))
        for file, entry in listed.items():
            if file not in present:
                return f"{file} is missing"
            size = (folder / file).stat().st_size
            if size != entry["bytes"]:
                return f"{file} has {size} bytes instead of {entry['bytes']}"
            if _sha256(folder / file) != entry["sha256"]:
                return f"{file} was changed"
        if foreign := sorted(present - set(listed)):
            return f"{foreign[0]} does not belong to it"
    except (FileNotFoundError, NotADirectoryError):
        return f"{MANIFEST} is missing"
    except OSError as error:
        raise UserError(f"{folder}: cannot be read now: {error}; try again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def _manifest_text(files: Mapping[str, Mapping[str, object]]) -> str:
    """One spelling, with a checksum of itself: any changed byte shows."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=2, sort_keys=True) + "\n"


def _files(folder: Path) -> Iterator[str]:
    """Relative names of all files but the manifest and hidden ones (NFS and macOS make those)."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name != MANIFEST and not path.name.startswith("."):
            yield name


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Force files and folders to disk."""
    for path in [*folder.rglob("*"), folder]:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(link: Path, target: str) -> None:
    """Make or move a relative link in one step."""
    temporary = link.with_name(f".{link.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.replace(link)
