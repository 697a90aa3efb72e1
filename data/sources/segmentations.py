"""COCO segmentations: their masks, and boxes for annotations that have none of their own.

Run lengths are read here and not by pycocotools, whose C code trusts them: sizes of zero end the
process, and counts beyond the image are not checked. Format: pycocotools' maskApi.c.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

from data.boxes import from_corners, to_corners
from data.masks import Polygons, Rle
from data.sources.values import as_int, as_size, numbers_in

FARTHEST = 4
"""Corners of polygons are kept within this many sides of the picture; what is filled there is not seen"""


def mask_of_segmentation(segmentation: Any, size: tuple[int, int]) -> Polygons | Rle | str:
    """The mask of polygons [[x, y, x, y, ...], ...] or of an RLE {"size", "counts"}.

    Args:
        size: (height, width) of the picture that polygons are in.

    Returns: a kind of finding, if there is no mask to be had.
    """
    if segmentation is None or segmentation == []:
        return "no mask"
    if isinstance(segmentation, dict):
        return _rle(segmentation)
    if not isinstance(segmentation, list):
        return "broken mask"
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    rings = []
    for polygon in polygons:
        numbers = numbers_in(polygon) if isinstance(polygon, list) else None
        if numbers is None or len(numbers) % 2 or not np.isfinite(numbers).all():
            return "broken mask"
        if len(numbers) >= 6:  # others are told by `thin_rings`
            ring = np.array(numbers, dtype=np.float64).reshape(-1, 2)
            sides = np.array(size[::-1], dtype=np.float64)
            rings.append(ring.clip(-FARTHEST * sides, (1 + FARTHEST) * sides))
    return Polygons(size, tuple(rings)) if rings else "mask without area"


def thin_rings(segmentation: list[Any]) -> list[int]:
    """Places of the polygons that have fewer than three corners, in a segmentation whose mask is `Polygons`."""
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    return [place for place, polygon in enumerate(polygons) if len(polygon) < 6]


def _rle(rle: dict[str, Any]) -> Rle | str:
    checked = _checked_runs(rle)
    if checked is None:
        return "broken mask"
    size, runs = checked
    if not sum(runs[1::2]):
        return "mask without area"
    if rest := size[0] * size[1] - sum(runs):  # files may leave out the background at the end
        runs = [*runs, rest] if len(runs) % 2 == 0 else [*runs[:-1], runs[-1] + rest]
    counts = mask_api.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]
    return Rle(size, counts if isinstance(counts, bytes) else counts.encode("ascii"))


def _checked_runs(rle: dict[str, Any]) -> tuple[tuple[int, int], list[int]] | None:
    """(height, width) and run lengths that fit into it; None if they are none."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or len(size) != 2 or (wh := as_size(size[1], size[0])) is None:
        return None
    if isinstance(counts, str):
        counts = decode_counts(counts)
    runs = [as_int(count) for count in counts] if isinstance(counts, list) else [None]
    if any(run is None or run < 0 for run in runs) or sum(runs) > wh[0] * wh[1]:  # type: ignore[arg-type]
        return None
    return wh[::-1], runs  # type: ignore[return-value]


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """xywh box, px, of polygons [[x, y, x, y, ...], ...] or of an RLE {"size", "counts"}.

    Returns: None if it is neither, or empty.
    """
    if isinstance(segmentation, dict):
        return _box_of_rle(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(isinstance(polygon, list) for polygon in polygons):
        return None
    boxes = [box_of_polygon(numbers) for p in polygons if (numbers := numbers_in(p)) is not None]
    found = [box for box in boxes if box is not None]
    if len(found) < len(polygons):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        return _around(to_corners(np.array(found)).reshape(-1, 2))


def box_of_polygon(values: Sequence[float]) -> list[float] | None:
    """xywh box of a polygon x, y, x, y, ... of three points or more; None if it is none."""
    if len(values) < 6 or len(values) % 2:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        return _around(np.array(values, dtype=np.float64).reshape(-1, 2))


def _around(points: np.ndarray) -> list[float]:
    """xywh box around points [n, 2]."""
    corners = np.concatenate([points.min(axis=0), points.max(axis=0)])[None]
    return from_corners(corners)[0].tolist()


def _box_of_rle(rle: dict[str, Any]) -> list[float] | None:
    checked = _checked_runs(rle)
    if checked is None:
        return None
    (height, _), runs = checked
    ends = np.cumsum(np.array(runs, dtype=np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1  # every second run is foreground; columns first
    first = first[: len(last)]
    filled = last >= first
    first, last = first[filled], last[filled]
    if not len(first):
        return None
    left, right = first.min() // height, last.max() // height
    if (first // height != last // height).any():  # a run over the end of a column
        top, bottom = 0, height - 1
    else:
        top, bottom = (first % height).min(), (last % height).max()
    return [float(v) for v in (left, top, right - left + 1, bottom - top + 1)]


def decode_counts(text: str) -> list[int] | None:
    """Run lengths of a compressed RLE: 5 bits a character, each run the difference to the last but one."""
    counts: list[int] = []
    value, shift = 0, 0
    for char in text:
        code = ord(char) - 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return None if shift else counts
