"""Regions: the pixels of one class each, and segments: those of one thing, or of one class of stuff.

Label maps of files become masks, and masks become label maps.
"""

from collections.abc import Collection

import numpy as np

from data.boxes import from_corners
from data.masks import (
    Planes,
    Rle,
    bounds,
    filled_runs,
    mask_column,
    nearest,
    pixels_of,
    rle_of_runs,
)
from data.objects import Objects

MOST_PARTS = np.iinfo(np.uint16).max - 1
"""Objects, segments or classes of an image that planes of uint16 tell apart, beside the background and what is
not known"""


class TooManyValuesError(ValueError):
    """A label map has more values than were asked for."""

    def __init__(self, values: list[int]):
        super().__init__(f"{len(values):,} values")
        self.values = values


def rles_of(labels: np.ndarray, most: int | None = None) -> dict[int, Rle]:
    """The pixels of every value of a label map, integers [H, W], by value.

    Args:
        most: values that it may have; each takes time.

    Raises:
        TooManyValuesError: if there are more.
    """
    height, width = labels.shape
    flat = labels.ravel(order="F")
    first = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    length = np.diff(np.concatenate([first, [flat.size]]))
    values = flat[first]
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    if most is not None and len(found) > most:
        raise TooManyValuesError(found.tolist())
    rles = {}
    for value, runs in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        rles[value] = rle_of_runs(first[runs], first[runs] + length[runs], (height, width))
    return rles


def label_map(objects: Objects, size: tuple[int, int], background: int | None = None) -> np.ndarray:
    """uint16 [H, W]: class + 1 of every pixel, 0 where it is not known.

    Of objects that overlap, the smaller ones cover the larger ones: what is nested is a part.

    Args:
        objects: with masks and classes. size: (height, width), px.
        background: class of the pixels without any, as in `Taxonomy`.
    """
    labels = _drawn(objects, objects.classes + 1, size)
    if background is not None:
        labels[labels == 0] = background + 1
    return labels


def segment_map(
    objects: Objects,
    size: tuple[int, int],
    stuff: Collection[int],
    background: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """uint16 [H, W]: number of the segment of every pixel, from 1 on, 0 where it is not known; and the class
    of every segment, int64 [S].

    Args:
        objects: as for `label_map`; pixels of crowds alone are not known.
        stuff: classes of which all pixels of an image are one segment.
    """
    single = objects if objects.iscrowd is None else objects.take(~objects.iscrowd)
    classes: list[int] = []
    values = np.zeros(len(single), np.int64)
    of_stuff: dict[int, int] = {}
    for place, kind in enumerate(single.classes.tolist()):
        if kind in of_stuff:
            values[place] = of_stuff[kind]
            continue
        classes.append(kind)
        values[place] = len(classes)
        if kind in stuff:
            of_stuff[kind] = len(classes)
    numbers = _drawn(single, values, size)
    if background is not None:
        free = numbers == 0
        if len(single) < len(objects):
            crowds = objects.take(objects.iscrowd)
            free &= _drawn(crowds, np.ones(len(crowds), np.int64), size) == 0
        if background not in of_stuff:
            classes.append(background)
        numbers[free] = of_stuff.get(background, len(classes))
    return numbers, np.array(classes, dtype=np.int64)


def partition(
    objects: Objects,
    size: tuple[int, int],
    background: int | None = None,
    stuff: Collection[int] | None = None,
) -> tuple[Planes, Objects]:
    """The segments of one image, of which no two overlap, and planes numbered by them.

    Args:
        objects, size, background: as for `label_map`. stuff: as for `segment_map`; None: all classes are
            (regions, crowds as well).
    """
    if stuff is None:
        labels = label_map(objects, size, background)
        classes = np.arange(int(labels.max()), dtype=np.int64)
    else:
        labels, classes = segment_map(objects, size, stuff, background)
    present = np.flatnonzero(np.bincount(labels.ravel()))  # of many pixels faster than unique
    present = present[present > 0]
    numbers = np.zeros(len(classes) + 1, np.uint16)
    numbers[present] = np.arange(1, len(present) + 1)
    num = len(present)
    planes = Planes(numbers[labels][None].astype(np.uint8 if num < 255 else np.uint16))
    boxes, areas = planes.boxes(num)
    segments = Objects(
        boxes,
        classes[present.astype(np.int64) - 1],
        areas=areas.astype(np.float64),
        iscrowd=np.zeros(num, dtype=bool),
    )
    return planes, segments


def regions_of(labels: np.ndarray) -> Objects:
    """The regions of a map as `label_map` gives it, with masks."""
    rles = {value: rle for value, rle in rles_of(labels).items() if value}
    height, width = labels.shape
    parts = np.array([bounds(rle) for rle in rles.values()]).reshape(-1, 4)
    return Objects(
        boxes=from_corners(parts * [width, height, width, height]),
        classes=np.array(list(rles), dtype=np.int64) - 1,
        masks=mask_column(list(rles.values())),
    )


def segments_of(numbers: np.ndarray, classes: np.ndarray) -> Objects:
    """The segments of a map as `segment_map` gives it, with masks."""
    segments = regions_of(numbers)
    return Objects(segments.boxes, classes[segments.classes], masks=segments.masks)


def _drawn(objects: Objects, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint16 [H, W] with the value of the object that each pixel is of, 0 elsewhere; small ones over large
    ones."""
    drawn = _disjoint(objects, values, size)
    if drawn is None:
        drawn = np.zeros(size, np.uint16)
        areas = np.zeros(len(objects)) if objects.areas is None else objects.areas
        for place in np.argsort(-areas, kind="stable").tolist():
            rows, columns = pixels_of(objects.masks[place], size)
            drawn[rows, columns] = values[place]
    return drawn


def _disjoint(objects: Objects, values: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """As `_drawn`, many times faster, of run lengths of one size that do not overlap; else None."""
    if not len(objects):
        return np.zeros(size, np.uint16)
    sizes = {mask.size if isinstance(mask, Rle) else None for mask in objects.masks}
    own = sizes.pop()
    if sizes or own is None:
        return None
    runs = [filled_runs(mask) for mask in objects.masks]
    first = np.concatenate([start for start, _ in runs])
    length = np.concatenate([number for _, number in runs])
    value = np.repeat(values, [len(start) for start, _ in runs]).astype(np.uint16)
    order = np.argsort(first)
    first, length, value = first[order], length[order], value[order]
    end = first + length
    if (end[:-1] > first[1:]).any():
        return None
    free = first - np.concatenate([[0], end[:-1]])
    pieces = np.column_stack([np.zeros_like(value), value]).ravel()
    lengths = np.column_stack([free, length]).ravel()
    rest = own[0] * own[1] - int(lengths.sum())
    flat = np.repeat(np.append(pieces, 0), np.append(lengths, rest)).astype(np.uint16)
    labels = flat.reshape(own[1], own[0]).T
    if own == size:
        return labels
    y, x = (nearest(have, want) for have, want in zip(own, size, strict=True))
    return labels[y[:, None], x[None]]
