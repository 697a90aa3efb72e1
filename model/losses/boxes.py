"""Boxes inside of the model: cxcywh in [0, 1], as tensors whose last dimension is 4."""

import torch


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] x1 y1 x2 y2 of cxcywh boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def centred(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] cxcywh of x1 y1 x2 y2 boxes; the way back of `corners`."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of cxcywh boxes whose leading dimensions broadcast, [...]."""
    intersection, union = _overlap(first, second)
    return intersection / union


def box_giou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of cxcywh boxes whose leading dimensions broadcast, [...].

    Source: https://arxiv.org/abs/1902.09630.
    """
    a, b = corners(first), corners(second)
    intersection, union = _overlap(first, second)
    hull = _area(torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2]))
    return intersection / union - (hull - union) / hull


def _overlap(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Areas of intersection and union."""
    a, b = corners(first), corners(second)
    common = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = _area(common)
    return intersection, _area(first[..., 2:]) + _area(second[..., 2:]) - intersection


def _area(sides: torch.Tensor) -> torch.Tensor:
    """Of (width, height), [..., 2]. The gradient of `prod` would look for zeros, for which a GPU is waited for."""
    return sides[..., 0] * sides[..., 1]
