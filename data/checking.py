"""Which boxes can be trained on, and what is done about the others."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

MIN_SIDE_PX = 1e-3
"""A box thinner than this has no area to speak of"""


@dataclass(frozen=True)
class CleanBoxes:
    """Boxes that lie inside their image, and which of the given ones they are."""

    boxes: np.ndarray
    """float64 [m, 4] xywh, px"""
    kept: np.ndarray
    """int64 [m]: their places among the given boxes"""
    defects: Counter[str]
    """Number of boxes by what was wrong with them"""


def clean_boxes(boxes: np.ndarray, width: int, height: int) -> CleanBoxes:
    """Clip xywh boxes, float [n, 4], to the image; drop those with nothing inside it."""
    defects: Counter[str] = Counter()
    finite = np.isfinite(boxes).all(axis=1)
    defects["not a number"] = int((~finite).sum())
    positive = finite & (np.where(finite[:, None], boxes, 1.0)[:, 2:] > 0).all(axis=1)
    defects["no area"] = int((finite & ~positive).sum())
    kept = np.flatnonzero(positive)
    corners = np.concatenate([boxes[kept, :2], boxes[kept, :2] + boxes[kept, 2:]], axis=1)
    limits = np.array([width, height, width, height], dtype=np.float64)
    clipped = corners.clip(0, limits)
    sides = clipped[:, 2:] - clipped[:, :2]
    inside = (sides > MIN_SIDE_PX).all(axis=1)
    defects["outside the image"] = int((~inside).sum())
    moved = np.abs(clipped - corners).max(axis=1, initial=0.0) > 0.5
    defects["partly outside"] = int((inside & moved).sum())
    xywh = np.concatenate([clipped[:, :2], sides], axis=1)[inside]
    return CleanBoxes(xywh, kept[inside], +defects)
