"""What a frozen backbone makes of images, kept in files: a table of maps by image and view.

A view is an image as one epoch's augmentation left it. Files hold SHARD_IMAGES images each, so that they can be
made one by one; their names say what their images are, so that no file is ever replaced by another one. Rows are
read from where they lie, by every process that needs them.
"""

import contextlib
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

from data.record import Record
from data.schema import Split
from data.window import Window
from disk import write_whole
from errors import UserError

SHARD_IMAGES = 64
"""Images of a file"""
OPEN_FILES = 64
"""Files that a process keeps open"""
FAILURES = "failures"
"""Entry of a file's metadata: JSON, by image why there are no maps of it, or an empty text"""


def images_of(shard: int, num_images: int) -> range:
    """Places in the split of a file's images."""
    return range(shard * SHARD_IMAGES, min((shard + 1) * SHARD_IMAGES, num_images))


@dataclass(frozen=True)
class FeatureStore:
    """The maps of all images of a split."""

    folder: Path
    num_images: int
    views: int
    digests: tuple[str, ...]
    """Of what each file is made from, `shard_digests`"""

    def images_of(self, shard: int) -> range:
        """Places in the split of a file's images."""
        return images_of(shard, self.num_images)

    def file(self, view: int, shard: int) -> Path:
        """Where the maps of these images lie."""
        return self.folder / f"view-{view:03d}" / f"{shard:06d}-{self.digests[shard]}.safetensors"

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
        self, view: int, shard: int, maps: Sequence[torch.Tensor], failures: Sequence[str]
    ) -> None:
        """Write one file, whole or not at all.

        Args:
            maps: [n, C, h, w] for the n images. failures: why an image has no maps, or "".

        Raises:
            OSError: if it cannot be written.
        """
        file = self.file(view, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {FAILURES: json.dumps(list(failures))}
        write_whole(file, save({f"map{n}": m.contiguous() for n, m in enumerate(maps)}, told))

    def failed_images(self, view: int, shard: int) -> list[int] | None:
        """Images of a file that it has no maps of; None if it is not there, or not whole."""
        images = self.images_of(shard)
        try:
            with safe_open(self.file(view, shard), "pt") as opened:
                failures = json.loads((opened.metadata() or {})[FAILURES])
                names = sorted(opened.keys())
                rows = {opened.get_slice(name).get_shape()[0] for name in names}
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if rows != {len(images)} or not isinstance(failures, list) or len(failures) != len(images):
            return None
        return [image for image, text in zip(images, failures, strict=True) if text]


@functools.lru_cache(OPEN_FILES)
def _opened(file: Path, *_: int) -> tuple[Any, list[str], list[str]]:
    opened = safe_open(file, "pt").__enter__()
    return opened, sorted(opened.keys()), json.loads(opened.metadata()[FAILURES])


def _known(file: Path) -> tuple[Any, ...]:
    """A file, and what changes if another one is put in its place: a broken one is made anew."""
    stat = file.stat()
    return file, stat.st_ino, stat.st_mtime_ns


class Contents:
    """sha256 of encoded images, from one run to the next: a file of the same size and times is not read again."""

    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, list[Any]] = {}
        self.changed = False
        with contextlib.suppress(OSError, ValueError):  # none yet, or a torn one: made anew
            loaded = json.loads(file.read_text())
            self.known = loaded if isinstance(loaded, dict) else {}

    def of(self, source: Path | bytes) -> str:
        """Empty for what cannot be read."""
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        try:
            stat = source.stat()
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            entry = self.known.get(str(source))
            if isinstance(entry, list) and len(entry) == 4 and entry[:3] == state:
                return str(entry[3])
            if not source.is_file():  # a pipe would be waited for
                return ""
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
        except (OSError, ValueError):
            return ""
        self.known[str(source)] = [*state, digest]
        self.changed = True
        return digest

    def save(self) -> None:
        """Write them, whole or not at all; where they cannot be written, the next run reads all images."""
        if self.changed:
            with contextlib.suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.file, json.dumps(self.known))


def shard_digests(split: Split, contents: Contents, by_labels: bool) -> tuple[str, ...]:
    """What each file of a split is made from, in short.

    Args:
        by_labels: views depend on the objects too: no transform may lose all of them, some crop around them.
    """
    digests = []
    for shard in range(-(-len(split) // SHARD_IMAGES)):
        seen = hashlib.sha256()
        for image in images_of(shard, len(split)):
            try:
                source = split.images[image]
            except UserError:  # a row without an image
                source = None
            whole = source.source if isinstance(source, Window) else source
            content = "" if whole is None else contents.of(whole)
            seen.update(content.encode() + b"\n")
            if isinstance(source, Window):
                seen.update(repr((source.x, source.y, source.width, source.height)).encode())
            if by_labels:
                seen.update(_labels_digest(split.records[image]))
        digests.append(seen.hexdigest()[:20])
    return tuple(digests)


def _labels_digest(record: Record) -> bytes:
    objects, seen = record.objects, hashlib.sha256()
    for column in (objects.boxes, objects.classes, objects.iscrowd, objects.areas):
        seen.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    for mask in () if objects.masks is None else objects.masks:
        seen.update(mask.key())
    return seen.digest()
