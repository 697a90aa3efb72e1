"""Classification that learns how good the box is: the score of a query is to be the IoU of its box."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data.objects import Objects
from model.losses.boxes import box_giou, box_iou
from model.losses.matching import mark
from model.losses.terms import weighed

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


LEAST_QUALITY = 0.01
"""What a match is worth however poor its box is"""


def iou_aware(alpha: float) -> QualityLoss:
    """IoU-aware cross-entropy of LW-DETR (https://arxiv.org/abs/2406.03459): a match is worth a mean of its own
    score and its IoU."""

    def loss(logits: torch.Tensor, called: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
        score = logits.sigmoid()
        worth = score.detach() ** alpha * iou ** (1 - alpha)
        positive = worth.clamp(min=LEAST_QUALITY) * called
        negative = torch.where(called > 0, 1 - positive, score**2)
        # Logarithms of the sigmoid itself are infinite for sure logits.
        return -positive * F.logsigmoid(logits) - negative * F.logsigmoid(-logits)

    return loss


@dataclass(frozen=True)
class PairLosses:
    """Sums of each prediction layer, [P], and the IoU of each pair, [K]."""

    classes: torch.Tensor
    l1: torch.Tensor
    giou: torch.Tensor
    iou: torch.Tensor


def pair_losses(
    quality: QualityLoss,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    place: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    objects: Objects,
    target: torch.Tensor,
) -> PairLosses:
    """Classes of all queries, and boxes of those with an object.

    Args:
        logits: [P, B, Q, C]. boxes: [P, B, Q, 4]. place: layer, image and query of each pair, as many in every
            layer. target: its object.
    """
    goal = objects.boxes.to(boxes.dtype)[target]
    own = boxes[place]
    iou = box_iou(own, goal).detach()
    called, good = torch.zeros_like(logits), torch.zeros_like(logits)
    where = (*place, objects.classes[target])
    mark(called, where, 1.0)
    good[where] = iou
    num = len(logits)
    weights = None if objects.weights is None else objects.weights[target]
    return PairLosses(
        weighed(quality(logits, called, good), where, weights).sum((1, 2, 3)),
        (own - goal).abs().sum(-1).view(num, -1).sum(1),
        (1 - box_giou(own, goal)).view(num, -1).sum(1),
        iou,
    )
