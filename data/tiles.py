"""Windows of large images as images of their own: the same ones in training, evaluation and prediction.

Nothing is written: a window is cut out of the decoded image when it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.masks import Mask
from data.objects import Objects
from data.schema import EncodedImages, Split
from data.strips import Strips, cut_out
from data.table import LazyMasks, RecordTable
from data.window import Window
from settings.keys import TilesConfig

MIN_PART = 0.25
"""Of an object that is to be learnt in a window: of its mask, or of its box where it has none"""


@dataclass(frozen=True)
class Tiles:
    """The windows of a split's images, in the order of the images."""

    image: np.ndarray
    """int64 [T]: place of the image in its split"""
    windows: np.ndarray
    """int64 [T, 4]: x, y, width, height, px of the decoded image"""
    sizes: np.ndarray
    """int64 [N, 2]: (height, width) of the images, px"""

    def __len__(self) -> int:
        return len(self.image)


def windows_of(height: int, width: int, cfg: TilesConfig) -> np.ndarray:
    """int64 [n, 4]: x, y, width, height of the windows of an image, row by row; they cover it.

    Neighbours overlap by at least `cfg.overlap` of a side, and all of an image have the same size: `cfg.size`, or the image's
    where that is less. With `cfg.whole` the whole image is the last one.
    """
    assert cfg.size is not None
    columns, rows = (_starts(side, cfg.size, cfg.overlap) for side in (width, height))
    y, x = (part.ravel() for part in np.meshgrid(rows, columns, indexing="ij"))
    sides = np.array([min(cfg.size, width), min(cfg.size, height)])
    windows = np.column_stack([x, y, np.tile(sides, (len(x), 1))])
    if cfg.whole and len(windows) > 1:
        windows = np.concatenate([windows, [[0, 0, width, height]]])
    return windows


def _starts(side: int, size: int, overlap: float) -> np.ndarray:
    """Where windows begin along a side, px."""
    if side <= size:
        return np.zeros(1, np.int64)
    shared = round(size * overlap)
    num = -(-(side - shared) // (size - shared))
    return np.linspace(0, side - size, num).round().astype(np.int64)


def tiles_of(split: Split, cfg: TilesConfig) -> Tiles:
    """The windows of a split."""
    sizes = split.table.sizes
    parts = [windows_of(height, width, cfg) for height, width in sizes.tolist()]
    image = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Tiles(image, np.concatenate([np.zeros((0, 4), np.int64), *parts]), sizes)


def tiled(split: Split, tiles: Tiles, masks: bool = True) -> Split:
    """The split whose images are the windows. An object is on each of which it has at least MIN_PART of itself, cut at
    its borders; a crowd, or what is larger than a window, on all that it reaches into.

    Of a mask its pixels count. Those that a border cuts are counted here; the masks of a window are cut out when they
    are asked for.

    Args:
        masks: with those of the split, if it has some.
    """
    whole = split.table
    of_masks = whole.objects.masks if masks else None
    images = whole.with_masks(None)  # none is made that no border cuts
    firsts = np.cumsum(images.counts) - images.counts
    records = []
    objects: list[Objects] = []
    origins = [np.zeros(0, np.int64)]
    last, shape = -1, None
    for place, window in zip(tiles.image.tolist(), tiles.windows, strict=True):
        if place != last:
            last, record = place, images[place]
            size = (record.height, record.width)
            shape = None if of_masks is None else _shapes(of_masks, int(firsts[place]), size)
        own, kept = on_window(record.objects, window, shape)
        objects.append(own)
        origins.append(firsts[place] + kept)
        x, y, width, height = window.tolist()
        records.append(
            replace(
                record,
                image_id=f"{record.image_id}@{x},{y},{width},{height}",
                where=f"{record.where}, window {x},{y}",
                width=width,
                height=height,
                objects=own,
                digest=f"{record.digest}@{x},{y},{width},{height}" if record.digest else "",
            )
        )
    flat = Objects.of_images(objects)
    table = RecordTable.of(records, flat)
    if of_masks is not None:
        table = table.with_masks(WindowMasks(of_masks, tiles, np.concatenate(origins), flat.image))
    return replace(split, records=table, images=WindowImages(split.images, tiles))


def _shapes(masks: Any, first: int, size: tuple[int, int]) -> Callable[[int], Strips]:
    """What the mask of an object of an image covers, by its place on it; found out once.

    Args:
        masks: of all images. first: place among them of the image's first. size: (height, width) of the image, px.
    """
    return cache(lambda place: Strips.of(masks[first + place], size))


def on_window(
    objects: Objects, window: np.ndarray, shape: Callable[[int], Strips] | None = None
) -> tuple[Objects, np.ndarray]:
    """Those of an image that are on a window of it, in its pixels, without masks; and their places, int64 [m].

    Args:
        window: int64 [4]: x, y, width, height.
        shape: what the mask of the object at a place covers, whose visible part has the box then; None: there are boxes
            alone.
    """
    ends = objects.boxes[:, :2] + objects.boxes[:, 2:]
    low = np.maximum(objects.boxes[:, :2], window[:2])
    high = np.minimum(ends, window[:2] + window[2:])
    left = np.maximum(high - low, 0.0).prod(1)
    there = objects.boxes[:, 2:].prod(1)
    part = np.divide(left, there, out=np.zeros_like(left), where=there > 0)
    wide = np.minimum(objects.boxes[:, 2:], window[2:]).prod(1)
    needed = np.minimum(
        MIN_PART, np.divide(wide, there, out=np.ones_like(wide), where=there > 0) / 2
    )
    if shape is not None:
        cut = (low > objects.boxes[:, :2]).any(1) | (high < ends).any(1)
        for place in np.flatnonzero(cut & (left > 0)).tolist():
            whole = shape(place)
            seen = whole.within(window)
            left[place], part[place] = seen.pixels, seen.pixels / max(1, whole.pixels)
            low[place], high[place] = np.split(seen.corners() + np.tile(window[:2], 2), 2)
    kept = part >= needed
    if objects.iscrowd is not None:
        kept = np.where(objects.iscrowd, part > 0, kept)
    moved = replace(
        objects,
        boxes=np.column_stack([low - window[:2], np.maximum(high - low, 0.0)]),
        areas=None if objects.areas is None else objects.areas * part,
        masks=None,
    )
    places = np.flatnonzero(kept & (left > 0))
    return moved.take(places), places


class WindowMasks(LazyMasks):
    """The masks of a tiled split."""

    def __init__(self, masks: Any, tiles: Tiles, origin: np.ndarray, window: np.ndarray):
        """
        Args:
            masks: a column, of the whole images.
            origin: int64 [n]: place among them of each object on a window. window: int64 [n]: place of that.
        """
        self.masks, self.tiles, self.origin, self.window = masks, tiles, origin, window

    def __len__(self) -> int:
        return len(self.origin)

    def mask(self, place: int) -> Mask:
        """That of an object, on its window."""
        number = int(self.window[place])
        height, width = self.tiles.sizes[self.tiles.image[number]].tolist()
        whole = self.masks[int(self.origin[place])]
        return cut_out(whole, (height, width), self.tiles.windows[number])


@dataclass(frozen=True)
class WindowImages:
    """The images of a tiled split."""

    images: EncodedImages
    tiles: Tiles

    def __getitem__(self, index: int) -> Window:
        place = int(self.tiles.image[index])
        whole = self.images[place]
        assert isinstance(whole, Path | bytes), "windows are cut once"
        x, y, width, height = self.tiles.windows[index].tolist()
        return Window(whole, tuple(self.tiles.sizes[place].tolist()), x, y, width, height)
