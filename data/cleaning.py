"""Which boxes can be trained on, and what is done about the others."""

from dataclasses import dataclass

import numpy as np

MIN_SIDE_PX = 1e-3
"""A box thinner than this has no area to speak of"""
MOVED_PX = 0.5
"""A side that clipping moves by no more is none that sticks out: files round"""


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
        corners = np.concatenate([boxes[usable, :2], boxes[usable, :2] + boxes[usable, 2:]], axis=1)
    largest = np.finfo(np.float64).max
    clipped = corners.clip(0, np.minimum(np.tile(sizes, 2), largest / 2))
    sides = clipped[:, 2:] - clipped[:, :2]
    inside = (sides > MIN_SIDE_PX).all(axis=1)
    moved = (np.abs(clipped - corners) > MOVED_PX).any(axis=1)
    problems = {
        "box not a number": np.flatnonzero(~finite),
        "box with a negative side": np.flatnonzero(negative),
        "box without area": np.flatnonzero(thin),
        "box outside the image": usable[~inside],
        "box partly outside": usable[inside & moved],
    }
    xywh = np.concatenate([clipped[:, :2], sides], axis=1)[inside]
    return CleanBoxes(xywh, usable[inside], problems)


def repeated_boxes(boxes: np.ndarray, classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Places of boxes, float [n, 4], that repeat an earlier one of their image and class."""
    rows = np.concatenate([boxes, classes[:, None], images[:, None]], axis=1)
    order = np.lexsort(rows.T)  # stable: of equal ones the first stays first
    ordered = rows[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)
    return np.sort(order[1:][same])
