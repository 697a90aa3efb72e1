"""Conversions of boxes outside of the model, each written once. All are [n, 4] to [n, 4]."""

import numpy as np


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
