"""Which boxes can be trained on, and what is done about the others."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from data.boxes import from_corners, to_corners
from data.findings import Findings
from data.masks import area_of, bounds
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.table import RecordTable
from data.taxonomy import Taxonomy

MIN_SIDE_PX = 1e-3
"""A box thinner than this has no area to speak of"""
MOVED_PX = 0.5
"""A side that clipping moves by no more is none that sticks out: files round"""

AGREEING_IOU = 0.5
"""A box that shares less with that around its object's mask is of something else"""
OUTSIDE = "mask outside the image"


@dataclass(frozen=True)
class CleanBoxes:
    """Boxes that lie inside their image, and which of the given ones they are."""

    boxes: np.ndarray
    """float64 [m, 4] xywh, px"""
    kept: np.ndarray
    """int64 [m]: their places among the given boxes"""
    problems: dict[str, np.ndarray]
    """Places of the given boxes by what is wrong with them, a key of findings.KINDS"""


def clean_boxes(
    boxes: np.ndarray, width: float | np.ndarray, height: float | np.ndarray
) -> CleanBoxes:
    """Clip xywh boxes, float [n, 4], to their image; drop those with nothing inside it.

    Args:
        width: of the image, px, or of each box's image, [n]; infinite where it is not known.
        height: likewise.
    """
    finite = np.isfinite(boxes).all(axis=1)
    sides = np.where(finite[:, None], boxes[:, 2:], 1.0)
    negative = (sides < 0).any(axis=1)
    thin = ~negative & (sides <= MIN_SIDE_PX).any(axis=1)
    usable = np.flatnonzero(finite & ~negative & ~thin)
    num = len(boxes)
    sizes = np.stack([np.broadcast_to(width, num), np.broadcast_to(height, num)], axis=1)[usable]
    with np.errstate(over="ignore"):  # huge coordinates become infinite, and are clipped
        corners = to_corners(boxes[usable])
    largest = np.finfo(np.float64).max
    clipped = corners.clip(0, np.minimum(np.tile(sizes, 2), largest / 2))
    xywh = from_corners(clipped)
    inside = (xywh[:, 2:] > MIN_SIDE_PX).all(axis=1)
    moved = (np.abs(clipped - corners) > MOVED_PX).any(axis=1)
    problems = {
        "box not a number": np.flatnonzero(~finite),
        "box with a negative side": np.flatnonzero(negative),
        "box without area": np.flatnonzero(thin),
        "box outside the image": usable[~inside],
        "box partly outside": usable[inside & moved],
    }
    return CleanBoxes(xywh[inside], usable[inside], problems)


def repeated_boxes(objects: Objects) -> np.ndarray:
    """Places of the objects that repeat the box of an earlier one of their image and class."""
    assert objects.image is not None
    rows = np.column_stack([objects.boxes, objects.classes, objects.image])
    order = np.lexsort(rows.T)  # stable: of equal ones the first stays first
    ordered = rows[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)
    return np.sort(order[1:][same])


def cleaned(split: Split, name: str, taxonomy: Taxonomy, findings: Findings) -> Split:
    """The split with class indices for categories, and boxes that lie inside their images.

    All boxes of the split at once: a hundred thousand images take seconds.
    """
    records = split.records
    if not records:
        return dataclasses.replace(split, records=split.table)
    given = split.objects
    classes = taxonomy.class_indices(given.classes)
    sizes = np.array([_limits(record) for record in records])[given.image].reshape(-1, 2)
    boxes, of_masks = _around_masks(given, sizes)
    given = dataclasses.replace(given, boxes=boxes)
    clean = clean_boxes(given.boxes, sizes[:, 0], sizes[:, 1])
    wanted = (classes[clean.kept] >= 0) & ~np.isin(clean.kept, of_masks[OUTSIDE])
    kept = clean.kept[wanted]
    known = dataclasses.replace(given, classes=classes).take(kept)
    problems = {
        **clean.problems,
        **of_masks,
        "unknown category": np.flatnonzero(classes < 0),
        "duplicate box": kept[repeated_boxes(known)],
    }
    firsts = np.cumsum([0, *(len(record.objects) for record in records)])
    for place, kind in sorted((int(p), kind) for kind, places in problems.items() for p in places):
        image = int(given.image[place])
        detail = _detail(kind, records[image], place - int(firsts[image]), taxonomy)
        where = records[image].box_where(place - int(firsts[image]))
        findings.add(kind, where, detail, (name, image))
    boxes = clean.boxes[wanted]
    usable = np.isfinite(known.areas) & (known.areas > 0)
    areas = np.where(usable, known.areas, boxes[:, 2] * boxes[:, 3])
    if known.masks is not None:
        for place in np.flatnonzero(~usable).tolist():
            record = records[int(known.image[place])]
            areas[place] = area_of(known.masks[place], (record.height, record.width))
    known = dataclasses.replace(known, boxes=boxes, areas=areas)
    return dataclasses.replace(split, records=RecordTable.of(records, known))


def _around_masks(objects: Objects, sizes: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Boxes around the masks, where there are masks, and places of objects by what is wrong with these, a
    key of findings.KINDS.

    Args:
        sizes: (width, height) of each one's image, px, float64 [n, 2].
    """
    if objects.masks is None or not len(objects):
        return objects.boxes, {OUTSIDE: np.zeros(0, np.int64)}
    with np.errstate(over="ignore", invalid="ignore"):
        around = np.stack([bounds(mask) for mask in objects.masks]) * np.tile(sizes, 2)
        empty = ~(around[:, 2:] > around[:, :2]).all(axis=1)
        corners = to_corners(objects.boxes).clip(0, np.tile(sizes, 2))
        low, high = (
            np.maximum(around[:, :2], corners[:, :2]),
            np.minimum(around[:, 2:], corners[:, 2:]),
        )
        shared = (high - low).clip(0).prod(axis=1)
        total = sum((c[:, 2:] - c[:, :2]).clip(0).prod(axis=1) for c in (around, corners)) - shared
        differ = ~empty & ~(shared >= AGREEING_IOU * total)
    boxes = np.where(empty[:, None], np.array([0.0, 0, 1, 1]), from_corners(around))
    return boxes, {OUTSIDE: np.flatnonzero(empty), "mask and box disagree": np.flatnonzero(differ)}


def _limits(record: Record) -> tuple[float, float]:
    unknown = record.unreadable and (record.width, record.height) == (1, 1)
    return (np.inf, np.inf) if unknown else (record.width, record.height)


def _detail(kind: str, record: Record, index: int, taxonomy: Taxonomy) -> str:
    if kind == "unknown category":
        category = record.objects.classes[index]
        return f"id {category}, not among {list(taxonomy.category_ids)[:20]}"
    x, y, w, h = record.objects.boxes[index].tolist()
    return f"xywh {x:g} {y:g} {w:g} {h:g} in {record.width} x {record.height} px"
