"""Focal loss (https://arxiv.org/abs/1708.02002), and the matching cost made of it."""

import torch
import torch.nn.functional as F

GAMMA = 2.0


def sigmoid_focal_loss(logits: torch.Tensor, goal: torch.Tensor, alpha: float) -> torch.Tensor:
    """Focal loss of every element, same shape as `logits`."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    miss = probability * (1 - goal) + (1 - probability) * goal
    balance = alpha * goal + (1 - alpha) * (1 - goal)
    return balance * miss**GAMMA * cross_entropy


def focal_cost(logits: torch.Tensor, alpha: float = 0.25, gamma: float = GAMMA) -> torch.Tensor:
    """Cost of calling a query each class, same shape as `logits` (Deformable DETR's matcher)."""
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    return positive - negative
