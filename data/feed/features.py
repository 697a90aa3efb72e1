"""What a frozen backbone makes of images, kept in files: a table of maps by image and view.

A view is an image as one epoch's augmentation left it. Files hold SHARD_IMAGES images each, so that they can be
made and replaced one by one; rows are read from where they lie, by every process that needs them.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from data.schema import Record, Split
from disk import write_whole

SHARD_IMAGES = 64
"""Images of a file"""
OPEN_FILES = 64
"""Files that a process keeps open"""
IMAGES = "images"
"""Entry of a file's metadata: JSON, (contents, failures) of its images"""


@dataclass(frozen=True)
class FeatureStore:
    """The maps of all images of a split."""

    folder: Path
    num_images: int
    views: int
    by_labels: bool = False
    """Views depend on the objects too: no transform may lose all of them, and some crop around them"""

    @property
    def num_shards(self) -> int:
        """Files of one view."""
        return -(-self.num_images // SHARD_IMAGES)

    def images_of(self, shard: int) -> range:
        """Places in the split of a file's images."""
        return range(shard * SHARD_IMAGES, min((shard + 1) * SHARD_IMAGES, self.num_images))

    def file(self, view: int, shard: int) -> Path:
        """Where the maps of these images lie."""
        return self.folder / f"view-{view:03d}" / f"{shard:06d}.safetensors"

    def maps(self, image: int, view: int) -> tuple[torch.Tensor, ...]:
        """The maps [C, h, w] of an image, as they were stored."""
        shard, row = divmod(image, SHARD_IMAGES)
        opened, names, _ = _opened(*_known(self.file(view % self.views, shard)))
        return tuple(opened.get_slice(name)[row] for name in names)

    def failure(self, image: int, view: int) -> str:
        """Why there are none; empty if there are."""
        shard, row = divmod(image, SHARD_IMAGES)
        return _opened(*_known(self.file(view % self.views, shard)))[2][row]

    def write(
        self,
        view: int,
        shard: int,
        maps: Sequence[torch.Tensor],
        contents: Sequence[Any],
        failures: Sequence[str],
    ) -> None:
        """Write one file, whole or not at all.

        Args:
            maps: [n, C, h, w] for the n images. contents: of `content`, when they were read.
            failures: why an image has no maps, or "".

        Raises:
            OSError: if it cannot be written.
        """
        file = self.file(view, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {IMAGES: json.dumps([list(contents), list(failures)])}
        write_whole(file, save({f"map{n}": m.contiguous() for n, m in enumerate(maps)}, told))

    def is_current(self, view: int, shard: int, split: Split) -> bool:
        """Whether a file is there, whole, and of the images as they are now."""
        images = self.images_of(shard)
        try:
            with safe_open(self.file(view, shard), "pt") as opened:
                contents, _ = json.loads((opened.metadata() or {})[IMAGES])
                names = sorted(opened.keys())
                rows = [opened.get_slice(name).get_shape()[0] for name in names]
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        if not names or set(rows) != {len(images)} or len(contents) != len(images):
            return False
        return all(
            isinstance(known, list)
            and known[:1] == [self._labels(split.records[i])]
            and is_content(known[1:], split.images[i])
            for known, i in zip(contents, images, strict=True)
        )

    def content(self, split: Split, image: int) -> list[Any]:
        """What an image of a split is known by."""
        return [self._labels(split.records[image]), *content_of(split.images[image])]

    def _labels(self, record: Record) -> str:
        if not self.by_labels:
            return ""
        objects, seen = record.objects, hashlib.sha256()
        for column in (objects.boxes, objects.classes, objects.iscrowd):
            seen.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
        for mask in () if objects.masks is None else objects.masks:
            seen.update(mask.key())
        return seen.hexdigest()


@functools.lru_cache(OPEN_FILES)
def _opened(file: Path, *_: int) -> tuple[Any, list[str], list[str]]:
    opened = safe_open(file, "pt").__enter__()
    _contents, failures = json.loads(opened.metadata()[IMAGES])
    return opened, sorted(opened.keys()), failures


def _known(file: Path) -> tuple[Any, ...]:
    """A file, and what changes if another one is put in its place."""
    stat = file.stat()
    return file, stat.st_ino, stat.st_mtime_ns


def content_of(source: Path | bytes) -> list[Any]:
    """What an encoded image is known by: sha256 of its bytes; of a file also size and times."""
    if isinstance(source, bytes):
        return [hashlib.sha256(source).hexdigest()]
    try:
        return [hashlib.sha256(source.read_bytes()).hexdigest(), *_state(source)]
    except (OSError, ValueError):
        return [""]


def is_content(known: Any, source: Path | bytes) -> bool:
    """Whether `source` is what `content_of` said; a file of the same size and times is not read again."""
    if not isinstance(known, list) or not known:
        return False
    if isinstance(source, Path) and len(known) > 1:
        try:
            if known[1:] == _state(source):
                return True
        except (OSError, ValueError):
            return False
    return known[0] == content_of(source)[0]


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
