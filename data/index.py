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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.dataset import Data
from data.findings import Findings
from data.schema import Split
from data.sources.files import ImageFiles
from data.table import RecordTable
from data.taxonomy import Taxonomy
from disk import ROOT, alone, cache_root, whole_folder
from settings.keys import DataConfig, Labels

FOLDERS = ("coco", "imagefolder", "voc", "yolo", "label_maps")
"""Sources whose every file lies in the dataset's folder"""
NOT_READ = {
    *("strict", "image_size", "augment", "num_workers"),
    *("cache_features", "cache_precision", "cache_folder"),
}
"""Keys of the data's configuration that say nothing of what is read"""
SETTLED_NS = 100_000_000
"""A file that changed later than this before it was looked at may change again within the same tick of its
file system's clock, unseen"""


def indexed(cfg: DataConfig, seed: int, labels: Labels, read: Callable[[], Data]) -> Data:
    """What `read` gives, from the index where nothing has changed since it was written.

    One process of a machine reads while the others wait for it, each as long as it takes.
    """
    if cfg.source not in FOLDERS or cfg.path is None or not os.path.isdir(cfg.path):
        return read()
    name = f"dataset-{_key(cfg, seed, labels)}"
    with alone(cache_root() / f".{name}.lock"):
        state = State.of(roots(cfg))
        folder = cache_root() / f"{name}-{state.digest[:16]}"
        data = load(folder)
        if data is not None:
            return data
        begun = time.time_ns()
        data = read()
        paths = _paths(data)
        settled = state.newest_ns + SETTLED_NS < begun and State.of(roots(cfg)) == state
        if settled and paths is not None and _are_below(paths, roots(cfg)):
            with contextlib.suppress(OSError):  # done without
                store(folder, data, paths)
                for old in folder.parent.glob(f"{name}-*"):
                    if old != folder:
                        shutil.rmtree(old, ignore_errors=True)
        return data


@dataclasses.dataclass(frozen=True)
class State:
    """What is in some folders: names, sizes and times of all files."""

    digest: str
    newest_ns: int
    """When the last of them changed"""

    @staticmethod
    def of(folders: Sequence[Path]) -> "State":
        """As they are now, whatever links lead to."""
        digest, newest = hashlib.sha256(), 0
        for name, found in _files(folders):
            if found is None:
                digest.update(f"{name}\n".encode("utf-8", "surrogatepass"))
                continue
            # The time of the last change of any kind, since tools may set back that of the content.
            line = f"{name}\0{found.st_mode}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
            newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        return State(digest.hexdigest(), newest)


def roots(cfg: DataConfig) -> list[Path]:
    """The dataset's folder, and what of it the configuration puts elsewhere."""
    assert cfg.path is not None
    root = Path(os.path.abspath(cfg.path))
    named = (cfg.train_split, cfg.val_split, cfg.train_annotations, cfg.val_annotations)
    others = [Path(os.path.normpath(root / name)) for name in named if name is not None]
    return sorted({root, *(other for other in others if not other.is_relative_to(root))})


def _files(places: Sequence[Path]) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every file below, with its state; None for one that cannot be looked at."""
    seen: set[str] = set()
    for place in places:
        if not place.is_dir():
            yield str(place), _stat(place)
        for parent, folders, names in os.walk(place, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:  # links that lead back
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            for name in sorted(names):
                path = os.path.join(parent, name)
                yield path, _stat(path)


def _stat(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def store(folder: Path, data: Data, paths: Sequence[Sequence[str]]) -> None:
    """Write a dataset, whole or not at all.

    Args:
        paths: of the images of both splits.

    Raises:
        OSError: if it cannot be written.
    """
    splits = {"train": data.train, "val": data.val}
    with whole_folder(folder, shared=True) as writing:
        for (name, split), own in zip(splits.items(), paths, strict=True):
            table = split.table
            encoded = pa.array([os.fsencode(path) for path in own], pa.large_binary())
            _write(writing / f"{name}.images", table.images.append_column("path", encoded))
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
            "findings": [dataclasses.astuple(finding) for finding in data.findings],
            "labels": data.labels,
            "fingerprint": data.fingerprint(),
            "sizes": {file.name: file.stat().st_size for file in writing.iterdir()},
        }
        (writing / "rest.json").write_text(json.dumps(content))


def load(folder: Path) -> Data | None:
    """A stored dataset; None if there is none, or not all of it."""
    try:
        content = json.loads((folder / "rest.json").read_bytes())
        if any((folder / name).stat().st_size != size for name, size in content["sizes"].items()):
            return None  # a mapped file that is too short would end the process
        train, val = (
            _load_split(folder, name, content["splits"][name]) for name in ("train", "val")
        )
        taxonomy: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["taxonomy"].items()
        }
        findings = Findings()
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
    ):  # Arrow's errors are among them
        return None


def _load_split(folder: Path, name: str, said: dict[str, Any]) -> Split:
    images, rows = _read(folder / f"{name}.images"), _read(folder / f"{name}.objects")
    return Split(
        RecordTable(images, rows),
        ImageFiles(_Paths(images.column("path"))),
        {int(category): text for category, text in said["category_names"]},
        said["dense"],
        frozenset(said["stuff"]),
    )


class _Paths(Sequence[Path]):
    """Paths of images, each made when it is asked for."""

    def __init__(self, encoded: pa.Array):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return Path(os.fsdecode(self.encoded[int(index)].as_py()))


def _write(file: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read(file: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)


def _paths(data: Data) -> tuple[list[str], list[str]] | None:
    """Files of the images of both splits; None if one of them is none."""
    both = []
    for split in (data.train, data.val):
        sources = [split.images[place] for place in range(len(split))]
        if not all(isinstance(source, Path) for source in sources):
            return None
        both.append([str(source) for source in sources])
    return both[0], both[1]


def _are_below(paths: Sequence[Sequence[str]], folders: Sequence[Path]) -> bool:
    """Whether a change of any of the files would be seen."""
    parents = {os.path.abspath(os.path.dirname(path)) for own in paths for path in own}
    return all(any(Path(p).is_relative_to(folder) for folder in folders) for p in parents)


def _key(cfg: DataConfig, seed: int, labels: Labels) -> str:
    """What decides, beside the files, what is read: configuration, place, and our own code."""
    keys = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in NOT_READ}
    digest = hashlib.sha256(
        json.dumps([keys, seed, labels, os.path.abspath(str(cfg.path))]).encode()
    )
    for file in sorted((ROOT / "data").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
