"""Where the images of a dataset lie: how a change is seen, and how the images are found again at a later start."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from data.schema import EncodedImages, Split, Subset
from data.sources.files import ImageFiles
from settings.keys import DataConfig
from settings.tasks import Labels

FOLDERS = ("coco", "imagefolder", "voc", "yolo", "label_maps")
"""Sources whose every file lies in the dataset's folder"""


@dataclasses.dataclass(frozen=True)
class State:
    """What is in a folder: names, sizes and times of all files."""

    digest: str
    newest_ns: int
    """When the last of them changed"""

    @staticmethod
    def of(root: Path) -> "State":
        """As they are now, whatever links lead to."""
        digest, newest = hashlib.sha256(), 0
        for name, found in _files(root):
            if found is None:
                digest.update(f"{name}\n".encode("utf-8", "surrogatepass"))
                continue
            times = f"{found.st_mtime_ns}\0{found.st_ctime_ns}"
            line = f"{name}\0{found.st_mode}\0{found.st_ino}\0{found.st_size}\0{times}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
            # The time of the last change of any kind, since tools may set that of the content.
            newest = max(newest, found.st_ctime_ns)
        return State(digest.hexdigest(), newest)


def is_inside(cfg: DataConfig, root: Path) -> bool:
    """Whether all that a configuration names lies in the dataset's folder."""
    named = (
        *(cfg.train_split, cfg.val_split, cfg.train_annotations, cfg.val_annotations),
        *(cfg.train_images, cfg.val_images),
    )
    places = (Path(os.path.normpath(root / name)) for name in named if name is not None)
    return not any(".." in Path(name).parts for name in named if name is not None) and all(
        place.is_relative_to(root) for place in places
    )


def _files(root: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every file below, with its state; None for one that cannot be looked at, and for where a link leads."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if os.path.islink(parent):
            yield f"{parent}\0{real}", None
        if real in seen:  # by another way, or links that lead back
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


class FoundAgain(Protocol):
    """Finds images by what was noted of them."""

    def images(self, places: pa.Array) -> EncodedImages:
        """The images that `places` speaks of."""
        ...


class Places(FoundAgain, Protocol):
    """The places of a dataset's images."""

    def state(self) -> State:
        """As the dataset is now."""
        ...

    def found(self, split: Split) -> pa.Array | None:
        """By what each image of a split is found again; None if a change of one might not be seen."""
        ...


def places_of(cfg: DataConfig, labels: Labels) -> Places | None:
    """Those of a dataset; None where no change would be seen.

    Raises:
        UserError: if a dataset of the Hub cannot be had.
    """
    if cfg.source in FOLDERS and cfg.path is not None:
        root = Path(os.path.abspath(os.path.expanduser(cfg.path)))
        return Folder(root) if root.is_dir() and is_inside(cfg, root) else None
    if cfg.source == "hub" and not cfg.streaming:
        from data.sources.hub import open_splits, state_of

        rows = open_splits(cfg, labels)
        states = {name: state_of(own) for name, own in rows.items()}
        return None if None in states.values() else Rows(rows, repr(states))
    return None


class Folder:
    """Images that are files below a folder."""

    def __init__(self, root: Path):
        self.root = root

    def state(self) -> State:
        """Of all files, whatever they are."""
        return State.of(self.root)

    def found(self, split: Split) -> pa.Array | None:
        """Their paths."""
        sources = [split.images[place] for place in range(len(split))]
        if not all(isinstance(source, Path) for source in sources):
            return None
        paths = [os.fsencode(str(source)) for source in sources]
        parents = {os.path.abspath(os.path.dirname(path)) for path in paths}
        if not all(Path(os.fsdecode(parent)).is_relative_to(self.root) for parent in parents):
            return None
        return pa.array(paths, pa.large_binary())

    def images(self, places: pa.Array) -> EncodedImages:
        """As files."""
        return ImageFiles(_Paths(places))


class Rows:
    """Images that are in the rows of a Hub dataset."""

    def __init__(self, rows: Any, state: str):
        """
        Args:
            rows: of each split, by its name.
            state: by which a change of any is seen.
        """
        self.rows = rows
        self._state = State(hashlib.sha256(state.encode()).hexdigest(), 0)

    def state(self) -> State:
        """As the dataset was when it was opened: later changes make other rows."""
        return self._state

    def found(self, split: Split) -> pa.Array | None:
        """Name of the split and number of the row."""
        return pa.array(
            [_row(split.images, place) for place in range(len(split))], pa.large_binary()
        )

    def images(self, places: pa.Array) -> EncodedImages:
        """As rows."""
        from data.sources.hub import HubImages

        named = [place.rsplit(b"/", 1) for place in places.to_pylist()]
        (name,) = {name.decode() for name, _ in named}
        numbers = np.array([int(number) for _, number in named], np.int64)
        return HubImages(self.rows[name].select_columns("image"), numbers, name)


def _row(images: Any, place: int) -> bytes:
    while isinstance(images, Subset):
        images, place = images.images, images.indices[place]
    return f"{images.split}/{int(images.numbers[place])}".encode()


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
