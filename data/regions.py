"""Regions: the pixels of one class each. Label maps of files become masks, masks become label maps."""

import numpy as np
from faster_coco_eval.core import mask as mask_api

from data.boxes import from_corners
from data.masks import Planes, Rle, bounds, filled_runs, mask_column, nearest, pixels_of
from data.objects import Objects


def rles_of(labels: np.ndarray) -> dict[int, Rle]:
    """The pixels of every value of a label map, integers [H, W], by value."""
    height, width = labels.shape
    flat = labels.ravel(order="F")
    first = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    length = np.diff(np.concatenate([first, [flat.size]]))
    values = flat[first]
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    rles = {}
    for value, runs in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        ends = first[runs] + length[runs]
        free = first[runs] - np.concatenate([[0], ends[:-1]])
        counts = np.column_stack([free, length[runs]]).ravel().tolist()
        if rest := int(flat.size - ends[-1]):
            counts.append(rest)
        coded = mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        text = coded["counts"]
        rles[value] = Rle(
            (height, width), text if isinstance(text, bytes) else text.encode("ascii")
        )
    return rles


def by_class(
    objects: Objects, size: tuple[int, int], background: int | None = None
) -> tuple[Planes, Objects]:
    """The regions of one image, of which no two overlap, and planes numbered by them.

    Of objects that overlap, the smaller ones cover the larger ones: what is nested is a part.

    Args:
        objects: with masks, areas and classes. size: (height, width), px.
        background: class of the pixels without any, as in `Taxonomy`.
    """
    labels = label_map(objects, size, background)
    present = np.unique(labels)
    present = present[present > 0]
    numbers = np.zeros(int(labels.max()) + 1, np.uint16)
    numbers[present] = np.arange(1, len(present) + 1)
    num = len(present)
    planes = Planes(numbers[labels][None].astype(np.uint8 if num < 255 else np.uint16))
    boxes, areas = planes.boxes(num)
    regions = Objects(
        boxes,
        present.astype(np.int64) - 1,
        areas=areas.astype(np.float64),
        iscrowd=np.zeros(num, dtype=bool),
    )
    return planes, regions


def label_map(objects: Objects, size: tuple[int, int], background: int | None = None) -> np.ndarray:
    """uint16 [H, W]: class + 1 of every pixel, 0 where it is not known; arguments as of `by_class`."""
    labels = _disjoint(objects, size)
    if labels is None:
        labels = np.zeros(size, np.uint16)
        areas = np.zeros(len(objects)) if objects.areas is None else objects.areas
        for place in np.argsort(-areas, kind="stable").tolist():
            rows, columns = pixels_of(objects.masks[place], size)
            labels[rows, columns] = objects.classes[place] + 1
    if background is not None:
        labels[labels == 0] = background + 1
    return labels


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


def _disjoint(objects: Objects, size: tuple[int, int]) -> np.ndarray | None:
    """As `label_map`, many times faster, of run lengths of one size that do not overlap; else None."""
    if not len(objects):
        return np.zeros(size, np.uint16)
    sizes = {mask.size if isinstance(mask, Rle) else None for mask in objects.masks}
    own = sizes.pop()
    if sizes or own is None:
        return None
    runs = [filled_runs(mask) for mask in objects.masks]
    first = np.concatenate([start for start, _ in runs])
    length = np.concatenate([number for _, number in runs])
    value = np.repeat(objects.classes + 1, [len(start) for start, _ in runs]).astype(np.uint16)
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
