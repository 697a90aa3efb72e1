"""What was found on windows of images, as what was found on the images."""

from dataclasses import replace

import numpy as np

from data.objects import Objects
from data.tiles import Tiles
from evaluation.predictions import Predictions

SAME_IOU = 0.5
"""Boxes of a class from two windows are one object above it"""
PART = 0.6
"""A box that a window cuts is a part of another one that holds as much of it"""
CUT_PX = 1.0
"""How close to the border of a window a box is cut by it"""
AT_MOST = 3
"""Boxes of an image that are compared, for each that is kept"""
EQUAL_SCORES = 0.5
"""A whole object is believed before its part unless its score is less than this part of the other"""


def on_images(found: Predictions, tiles: Tiles, max_detections: int) -> Predictions:
    """The predictions of whole images: what neighbours have found twice is there once.

    Args:
        found: of the split of the windows. max_detections: most of an image, the highest-scored.
    """
    objects = found.objects
    assert objects.masks is None, "windows are for boxes"
    missing = np.unique(tiles.image[found.missing])
    windows = tiles.windows[objects.image]
    offset = np.column_stack([windows[:, :2], np.zeros((len(objects), 2))])
    moved = replace(objects, boxes=objects.boxes + offset, image=tiles.image[objects.image])
    cut = _cut(objects.boxes, windows, tiles.sizes[moved.image])
    order = np.lexsort((-moved.scores, moved.image))
    moved, cut, window = moved.take(order), cut[order], objects.image[order]
    ends = np.searchsorted(moved.image, np.arange(len(tiles.sizes) + 1))
    kept = [np.zeros(0, np.int64)]
    for image, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        if image in missing or start == end:
            continue
        best = slice(start, min(end, start + AT_MOST * max_detections))
        own = merged(moved.take(best), cut[best], window[best])
        kept.append(start + own[:max_detections])
    return Predictions(moved.take(np.concatenate(kept)), missing)


def _cut(boxes: np.ndarray, windows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """bool [n]: whether a box, in px of its window, ends at a border of it that is none of the image."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    before = (low <= CUT_PX) & (windows[:, :2] > 0)
    inner = windows[:, :2] + windows[:, 2:] < sizes[:, ::-1]
    after = (high >= windows[:, 2:] - CUT_PX) & inner
    return (before | after).any(1)


def merged(objects: Objects, cut: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Places, rising, of the objects of an image that are left.

    What one window has found is not compared with itself.

    Args:
        objects: by falling score.
        cut: bool [n]: by its window. window: int64 [n]: which has found it.
    """
    boxes, scores = objects.boxes, objects.scores
    dropped = np.zeros(len(boxes), bool)
    area = boxes[:, 2:].prod(1)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    order = np.lexsort((-scores, cut))  # whole ones first
    turn = np.argsort(order)
    for place in order.tolist():
        if dropped[place]:
            continue
        shared = np.minimum(high, high[place]) - np.maximum(low, low[place])
        both = np.maximum(shared, 0.0).prod(1)
        other = (window != window[place]) & (objects.classes == objects.classes[place])
        same = both > SAME_IOU * (area + area[place] - both)
        same &= (turn > turn[place]) | (scores < scores[place])
        part = cut & (both > PART * area) & (both > 0)
        believed = scores[place] >= EQUAL_SCORES * scores
        dropped |= other & believed & (same | (part & ~cut[place]))
    return np.flatnonzero(~dropped)
