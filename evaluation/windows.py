"""What was found on windows of images, as what was found on the images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from faster_coco_eval.core import mask as mask_api

from data.masks import Rle, mask_column
from data.objects import Objects
from data.strips import put_back
from data.tiles import Tiles
from evaluation.predictions import Predictions

SAME_IOU = 0.5
"""Objects of a class from two windows are one above it: of their masks, or of boxes where there are none"""
PART = 0.6
"""What a window cuts is a part of another object that covers as much of it"""
CUT_PX = 1.0
"""How close to the border of a window a box, or that around a mask, is cut by it"""
AT_MOST = 3
"""Objects of an image that are compared, for each that is kept"""
EQUAL_SCORES = 0.5
"""A whole object is believed before its part unless its score is less than this part of the other"""


def on_images(found: Predictions, tiles: Tiles, max_detections: int) -> Predictions:
    """The predictions of whole images: what neighbours have found twice is there once.

    What a pipeline makes of a window (`flat`) is left out: it cuts none.

    Args:
        found: of the split of the windows. max_detections: most of an image, the highest-scored.
    """
    objects = found.objects
    missing = np.unique(tiles.image[found.missing])
    windows = tiles.windows[objects.image]
    offset = np.column_stack([windows[:, :2], np.zeros((len(objects), 2))])
    moved = replace(objects, boxes=objects.boxes + offset, image=tiles.image[objects.image])
    cut = _cut(objects.boxes, windows, tiles.sizes[moved.image])
    order = np.lexsort((-moved.scores, moved.image))
    moved, cut, window = moved.take(order), cut[order], objects.image[order]
    ends = np.searchsorted(moved.image, np.arange(len(tiles.sizes) + 1))
    tables = [moved.take(slice(0, 0))]
    for image, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        if image in missing or start == end:
            continue
        best = slice(start, min(end, start + AT_MOST * max_detections))
        own = _put_back(moved.take(best), tiles, window[best])
        tables.append(own.take(merged(own, cut[best], window[best])[:max_detections]))
    return Predictions(Objects.concat(tables), missing)


def _put_back(objects: Objects, tiles: Tiles, window: np.ndarray) -> Objects:
    """The objects of an image with masks on it, if they have some.

    Args:
        window: int64 [n]: which has found each.
    """
    if objects.masks is None:
        return objects
    height, width = tiles.sizes[tiles.image[window[0]]].tolist()
    places = zip(objects.masks, tiles.windows[window], strict=True)
    masks = mask_column([put_back(mask, (height, width), place) for mask, place in places])
    return replace(objects, masks=masks)


def _cut(boxes: np.ndarray, windows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """bool [n]: whether a box, in px of its window, ends at a border of it that is none of the image."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    before = (low <= CUT_PX) & (windows[:, :2] > 0)
    inner = windows[:, :2] + windows[:, 2:] < sizes[:, ::-1]
    after = (high >= windows[:, 2:] - CUT_PX) & inner
    return (before | after).any(1)


def merged(objects: Objects, cut: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Places, rising, of the objects of an image that are left.

    What one window has found is not compared with itself. Masks are compared pixel by pixel, where their boxes touch.

    Args:
        objects: by falling score.
        cut: bool [n]: by its window. window: int64 [n]: which has found it.
    """
    boxes, scores = objects.boxes, objects.scores
    dropped = np.zeros(len(boxes), bool)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    pixels = None if objects.masks is None else Pixels(objects.masks)
    area = boxes[:, 2:].prod(1) if pixels is None else pixels.area
    order = np.lexsort((-scores, cut))  # whole ones first
    turn = np.argsort(order)
    for place in order.tolist():
        if dropped[place]:
            continue
        shared = np.minimum(high, high[place]) - np.maximum(low, low[place])
        both = np.maximum(shared, 0.0).prod(1)
        other = (window != window[place]) & (objects.classes == objects.classes[place])
        if pixels is not None:
            both = pixels.shared(place, other & ~dropped & (both > 0))
        same = both > SAME_IOU * (area + area[place] - both)
        same &= (turn > turn[place]) | (scores < scores[place])
        part = cut & (both > PART * area) & (both > 0)
        believed = scores[place] >= EQUAL_SCORES * scores
        dropped |= other & believed & (same | (part & ~cut[place]))
    return np.flatnonzero(~dropped)


class Pixels:
    """What masks of one image share."""

    def __init__(self, masks: Sequence[Rle]):
        self.coded = [{"size": list(mask.size), "counts": mask.counts} for mask in masks]
        self.area = np.asarray(mask_api.area(self.coded), np.float64)

    def shared(self, place: int, wanted: np.ndarray) -> np.ndarray:
        """float64 [n]: pixels that one mask shares with each of the wanted, bool [n]; 0 for the others."""
        both = np.zeros(len(self.coded))
        places = np.flatnonzero(wanted)
        if len(places):
            others = [self.coded[other] for other in places.tolist()]
            # With a crowd the measure is the part of the other one that lies on it.
            part = np.asarray(mask_api.iou(others, [self.coded[place]], [1]))[:, 0]
            both[places] = np.rint(part * self.area[places])
        return both
