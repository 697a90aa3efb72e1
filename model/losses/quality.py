"""Classification that learns how good the box is: the score of a query is to be the IoU of its box."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

QualityLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, whether a query is to be called a class, IoU where it is), all [..., C] -> loss, [..., C]"""


def varifocal(alpha: float, gamma: float) -> QualityLoss:
    """Varifocal loss (https://arxiv.org/abs/2008.13367), as RT-DETR and D-FINE have it."""

    def loss(logits: torch.Tensor, called: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
        goal = iou * called
        weight = alpha * logits.detach().sigmoid() ** gamma * (1 - called) + goal
        return F.binary_cross_entropy_with_logits(logits, goal, weight, reduction="none")

    return loss


def matchability_aware(alpha: float | None, gamma: float) -> QualityLoss:
    """MAL (DEIM, https://arxiv.org/abs/2412.04234): matches with poor boxes weigh as much as good ones."""

    def loss(logits: torch.Tensor, called: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
        goal = (iou * called) ** gamma
        scale = 1.0 if alpha is None else alpha
        weight = scale * logits.detach().sigmoid() ** gamma * (1 - called) + called
        return F.binary_cross_entropy_with_logits(logits, goal, weight, reduction="none")

    return loss
