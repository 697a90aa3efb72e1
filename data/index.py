"""The checked dataset as it was read last, kept as columns in a mapped file until one of its files changes.

Reading and checking annotations and headers takes a minute for a hundred thousand images, looking whether
anything has changed a second. All processes of a machine map the same file.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.dataset import Data
from data.findings import Findings
from data.images.headers import readable_formats
from data.places import FoundAgain, Places, State, places_of
from data.schema import Split
from data.table import RecordTable
from data.taxonomy import Taxonomy
from disk import ROOT, alone, cache_root, whole_folder
from settings.keys import DataConfig
from settings.tasks import Labels

NOT_READ = {
    *("strict", "image_size", "augment", "num_workers", "repeat_threshold", "tiles"),
    *("cache_features", "cache_precision", "cache_folder"),
    *("packed", "packed_cache_gb", "packed_cache_folder"),
}
"""Keys of the data's configuration that say nothing of what is read"""
KEPT_S = 30 * 86400.0
"""After which an index that nobody has used is removed; not at once, since another machine may have it mapped"""
PASSING = "[Errno "
"""In findings of files that the system could not give: it may at the next start"""
MADE_BY = ("pillow", "numpy", "pyarrow", "datasets", "faster-coco-eval")
SETTLED_NS = 2_000_000_000
"""A file that changed later than this before it was looked at may change again within the same tick of its
file system's clock, unseen"""


def indexed(cfg: DataConfig, seed: int, labels: Labels, read: Callable[[], Data]) -> Data:
    """What `read` gives, from the index where nothing has changed since it was written.

    One process of a machine reads while the others wait for it, each as long as it takes.
    """
    places = places_of(cfg, labels)
    if places is None:
        return read()
    name = f"dataset-{_key(cfg, seed, labels)}"
    state = places.state()
    folder = cache_root() / f"{name}-{state.digest[:16]}"
    data = load(folder, places)
    if data is not None:
        return data
    if state.newest_ns + SETTLED_NS < time.time_ns():
        with alone(cache_root() / f".{name}.lock") as waited:
            data = load(folder, places)
            if data is None and not waited:
                data = read()
                keep(folder, data, places, state)
    return read() if data is None else data  # if the other one could not keep it either


def keep(folder: Path, data: Data, places: Places, state: State) -> None:
    """Store a dataset that was read, if it can be and is sure to be what the next start would read.

    Args:
        state: of the dataset before it was read.
    """
    if any(PASSING in finding.detail for finding in data.findings) or places.state() != state:
        return
    with contextlib.suppress(OSError, ValueError, TypeError):  # done without
        found = [places.found(split) for split in (data.train, data.val)]
        if None not in found:
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            store(folder, data, found)
        for old in folder.parent.glob("dataset-*"):
            if time.time() - old.stat().st_mtime > KEPT_S:
                shutil.rmtree(old, ignore_errors=True)


def store(folder: Path, data: Data, found: Sequence[Any]) -> None:
    """Write a dataset, whole or not at all.

    Args:
        found: by what the images of both splits are found again.

    Raises:
        OSError: if it cannot be written.
    """
    splits = {"train": data.train, "val": data.val}
    with whole_folder(folder, shared=True) as writing:
        for (name, split), own in zip(splits.items(), found, strict=True):
            table = split.table
            _write(writing / f"{name}.images", table.images.append_column("place", own))
            _write(writing / f"{name}.objects", table.rows)
        content = {
            "splits": {
                name: {
                    "category_names": list(split.category_names.items()),
                    "dense": split.dense,
                    "stuff": sorted(split.stuff),
                }
                for name, split in splits.items()
            },
            "one_split": data.val is data.train,
            "taxonomy": dataclasses.asdict(data.taxonomy),
            "notes": data.findings.notes,
            "findings": [dataclasses.astuple(finding) for finding in data.findings],
            "labels": data.labels,
            "fingerprint": data.fingerprint(),
            "sizes": {file.name: file.stat().st_size for file in writing.iterdir()},
        }
        (writing / "rest.json").write_text(json.dumps(content))


def load(folder: Path, places: FoundAgain) -> Data | None:
    """A stored dataset; None if there is none, or not all of it."""
    try:
        content = json.loads((folder / "rest.json").read_bytes())
        if any((folder / name).stat().st_size != size for name, size in content["sizes"].items()):
            return None  # a mapped file that is too short would end the process
        train, val = (
            _load_split(folder, name, content["splits"][name], places) for name in ("train", "val")
        )
        taxonomy: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["taxonomy"].items()
        }
        with contextlib.suppress(OSError):
            os.utime(folder)  # it is used
        findings = Findings()
        for note in content["notes"]:
            findings.note(note)
        for kind, where, detail, image in content["findings"]:
            findings.add(kind, where, detail, None if image is None else tuple(image))
        return Data(
            train=train,
            val=train if content["one_split"] else val,
            taxonomy=Taxonomy(**taxonomy),
            findings=findings,
            labels=content["labels"],
            known_fingerprint=content["fingerprint"],
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AssertionError,
        AttributeError,
        RecursionError,
    ):  # Arrow's errors are among them
        return None


def _load_split(folder: Path, name: str, said: dict[str, Any], places: FoundAgain) -> Split:
    images, rows = _read(folder / f"{name}.images"), _read(folder / f"{name}.objects")
    return Split(
        RecordTable(images, rows),
        places.images(images.column("place")),
        {int(category): text for category, text in said["category_names"]},
        said["dense"],
        frozenset(said["stuff"]),
    )


def _write(file: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read(file: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)


def _key(cfg: DataConfig, seed: int, labels: Labels) -> str:
    """What decides, beside the files, what is read: configuration, place, and our own code."""
    keys = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in NOT_READ}
    digest = hashlib.sha256(
        json.dumps([keys, seed, labels, os.path.abspath(str(cfg.path))]).encode()
    )
    for file in sorted(
        file for room in ("data", "settings") for file in (ROOT / room).rglob("*.py")
    ):
        digest.update(file.read_bytes())
    made_by = [*(version(package) for package in MADE_BY), *readable_formats()]
    digest.update(repr(made_by).encode())
    return digest.hexdigest()[:16]
