"""What only drawing masks shows: outlines that cross themselves, and objects that were labelled twice."""

import numpy as np
from faster_coco_eval.core import mask as mask_api

from data.masks import Polygons, to_rle
from data.objects import Objects
from data.record import Record

Defect = tuple[str, str, str]
"""Kind, where, detail: a finding, but for the image it belongs to"""
SAME_IOU = 0.8
"""Masks of one class that share more than this are probably of one object"""
MOST_CORNERS = 1000
"""An outline with more corners is not looked at: comparing all its edges would take too long"""
SAME_BOX_IOU = 0.5
"""Masks whose boxes share less are not compared"""


def mask_defects(record: Record) -> list[Defect]:
    """What the masks of an image's objects show; nothing where there are none."""
    found: list[Defect] = []
    objects = record.objects
    if objects.masks is None:
        return found
    for index, mask in enumerate(objects.masks):
        if isinstance(mask, Polygons):
            crossing = [ring for ring in mask.rings if crosses_itself(ring)]
            if crossing:
                detail = f"an outline of {len(crossing[0])} corners"
                found.append(("mask crosses itself", record.box_where(index), detail))
    for one, other, share in twins(objects, (record.height, record.width)):
        detail = f"IoU {share:.2f} with {record.box_text(one)}"
        found.append(("masks of one object", record.box_where(other), detail))
    return found


def crosses_itself(ring: np.ndarray) -> bool:
    """Whether two edges of an outline, float64 [k, 2], cross at a point that is no corner of it."""
    if not 4 <= len(ring) <= MOST_CORNERS:
        return False
    start, end = ring, np.roll(ring, -1, axis=0)
    first = _sides(start, end, start) * _sides(start, end, end)  # [k edges, k other edges]
    return bool(((first < 0) & (first.T < 0)).any())


def _sides(start: np.ndarray, end: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[k, n]: 1, 0 or -1 for the side of each line on which each point is."""
    direction = (end - start)[:, None]
    away = points[None] - start[:, None]
    return np.sign(direction[..., 0] * away[..., 1] - direction[..., 1] * away[..., 0])


def twins(objects: Objects, size: tuple[int, int]) -> list[tuple[int, int, float]]:
    """(place, later place, IoU) of objects of one class, crowds aside, whose masks are nearly the same."""
    low, high = objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]
    both = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    shared = both.clip(0).prod(axis=2)
    area = objects.boxes[:, 2:].prod(axis=1)
    iou = shared / np.maximum(area[:, None] + area[None] - shared, 1e-9)
    near = (iou > SAME_BOX_IOU) & (objects.classes[:, None] == objects.classes[None])
    if objects.iscrowd is not None:
        near &= ~(objects.iscrowd[:, None] | objects.iscrowd[None])
    found = []
    for one, other in zip(*np.nonzero(np.triu(near, 1)), strict=True):
        pair = [to_rle(objects.masks[place], size) for place in (one, other)]
        coded = [{"size": list(rle.size), "counts": rle.counts} for rle in pair]
        share = float(mask_api.iou(coded[:1], coded[1:], [0])[0, 0])
        if share > SAME_IOU:
            found.append((int(one), int(other), share))
    return found
