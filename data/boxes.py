"""Conversions of boxes outside of the model, each written once. All are [n, 4] to [n, 4]."""

import numpy as np

RELATIVE = "_relative"
"""Ends the name of a format whose numbers are parts of the image's sides"""
VOC = "voc"
"""Corners in pixels that count from 1, both inclusive"""


def to_corners(boxes: np.ndarray) -> np.ndarray:
    """x1 y1 x2 y2 of xywh."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def from_corners(corners: np.ndarray) -> np.ndarray:
    """xywh of x1 y1 x2 y2."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def to_centres(boxes: np.ndarray) -> np.ndarray:
    """cxcywh of xywh."""
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def from_centres(boxes: np.ndarray) -> np.ndarray:
    """xywh of cxcywh."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def read_as(boxes: np.ndarray, box_format: str, sizes: np.ndarray) -> np.ndarray:
    """xywh in px of four numbers as a file has them.

    Args:
        box_format: a name of `data.sources.box_formats`. sizes: (width, height) of the images, px, [n, 2] or [2].
    """
    kind, relative = box_format.removesuffix(RELATIVE), box_format.endswith(RELATIVE)
    if relative:
        boxes = boxes * np.concatenate([sizes, sizes], axis=-1).astype(np.float64)
    if kind == VOC:  # from 1-based inclusive pixels to pixel edges
        boxes = boxes - np.array([1.0, 1.0, 0.0, 0.0])
    if kind == "cxcywh":
        return from_centres(boxes)
    return from_corners(boxes) if kind in (VOC, "xyxy") else boxes


def written_as(boxes: np.ndarray, box_format: str, sizes: np.ndarray) -> np.ndarray:
    """The four numbers that `read_as` makes xywh, px, of."""
    kind, relative = box_format.removesuffix(RELATIVE), box_format.endswith(RELATIVE)
    if kind == "cxcywh":
        boxes = to_centres(boxes)
    elif kind in (VOC, "xyxy"):
        boxes = to_corners(boxes)
    if kind == VOC:
        boxes = boxes + np.array([1.0, 1.0, 0.0, 0.0])
    return boxes / np.concatenate([sizes, sizes], axis=-1) if relative else boxes
