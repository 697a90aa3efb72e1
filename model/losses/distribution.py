"""Boxes as distributions over distances of their edges (D-FINE, https://arxiv.org/abs/2410.13842).

An edge lies at W(0), ..., W(N) times a fraction of a reference box from where that box has it, each with a
probability; W is fine near 0 and coarse far from it.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.losses.boxes import corners

TEMPERATURE = 5.0
"""Of the distributions that earlier layers learn from the last one"""


@dataclass(frozen=True)
class Bins:
    """Where the N + 1 bins of an edge are."""

    num: int
    """N, even"""
    scale: float
    """The config's reg_scale: larger means flatter"""
    up: float
    """Distance of the last but one bin, in `scale`"""

    def values(self, like: torch.Tensor) -> torch.Tensor:
        """W(0), ..., W(N), rising."""
        return _values(self, like.dtype, like.device)

    def numbers(self) -> list[float]:
        """W(0), ..., W(N)."""
        last = abs(self.up) * abs(self.scale)
        step = (last + 1) ** (2 / (self.num - 2))
        side = [step**i - 1 for i in range(1, self.num // 2)]
        return [-2 * last, *(-v for v in reversed(side)), 0.0, *side, 2 * last]


@functools.cache
def _values(bins: Bins, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copied to the device once."""
    return torch.tensor(bins.numbers(), dtype=dtype, device=device)


def edge_loss(
    edges: torch.Tensor,
    references: torch.Tensor,
    goal: torch.Tensor,
    iou: torch.Tensor,
    bins: Bins,
) -> torch.Tensor:
    """Fine-grained localisation loss of each pair, [K]: cross-entropy with the two bins next to the truth,
    weighed by how near they are, and by the IoU of the predicted box.

    Args:
        edges: logits [K, 4, N + 1] of left, top, right, bottom. references, goal: [K, 4] cxcywh.
    """
    where = distances(references, goal, bins)
    values = bins.values(where)
    left = (torch.searchsorted(values, where, right=True) - 1).clamp(0, bins.num - 1)
    nearer = ((where - values[left]) / (values[left + 1] - values[left])).clamp(0, 1)
    log_p = edges.log_softmax(-1)
    low, high = (log_p.gather(-1, index[..., None])[..., 0] for index in (left, left + 1))
    return -(low * (1 - nearer) + high * nearer).sum(-1) * iou


def distances(references: torch.Tensor, goal: torch.Tensor, bins: Bins) -> torch.Tensor:
    """[K, 4]: how far out each edge of `goal` is from that of its reference, where W counts."""
    scale = abs(bins.scale)
    centre, sides = references[:, :2], references[:, 2:] / scale + 1e-16
    box = corners(goal)
    outwards = torch.cat([centre - box[:, :2], box[:, 2:] - centre], dim=1)
    return outwards / sides.repeat(1, 2) - scale / 2


def distillation(edges: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """KL divergence of a layer's distributions from those of the last layer, [...], over the four edges.

    Args:
        edges, teacher: logits [..., 4, N + 1]. weight: of each query, [...].
    """
    goal = (teacher.detach() / TEMPERATURE).log_softmax(-1)
    found = (edges / TEMPERATURE).log_softmax(-1)
    divergence = F.kl_div(found, goal, reduction="none", log_target=True).sum((-2, -1))
    return divergence * weight * TEMPERATURE**2
