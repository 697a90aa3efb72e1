"""Batch norm whose statistics do not change in training.

A usual one takes those of each device's micro-batch, so that a step would depend on how it is split. Here they
are the checkpoint's, or, in a head from nothing, those of some training images, measured once before the
first step. Scale and shift are trained.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class HeldBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d with the same tensors under the same names. It is plain arithmetic, also because the
    gradient of torch's own is wrong on a CPU for one image and a transposed gradient (torch 2.13)."""

    known: bool
    """Whether the statistics are those of data"""
    sums: torch.Tensor | None
    """Number, sums and sums of squares of what was seen while measuring, float64 [3, C]"""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] of [B, C, H, W]."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None
        assert variance is not None
        if self.sums is not None:
            pixels = values.transpose(0, 1).flatten(1).double()
            count = torch.full_like(pixels[:, 0], pixels.shape[1])
            self.sums += torch.stack([count, pixels.sum(1), pixels.square().sum(1)])
            mean, variance = pixels.mean(1).to(mean), pixels.var(1, correction=0).to(variance)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return values * scale[:, None, None] + shift[:, None, None]

    def train(self, mode: bool = True) -> "HeldBatchNorm":
        """The same in training and evaluation."""
        return super().train(False)


def hold_norms(
    model: nn.Module, but: nn.Module | None = None, taken: Iterable[str] | None = None
) -> None:
    """Let every batch norm keep its statistics.

    Args:
        but: not those in this part. taken: names of tensors that are a checkpoint's; default: all are.
    """
    inside = set() if but is None else {id(module) for module in but.modules()}
    names = set(model.state_dict() if taken is None else taken)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and id(module) not in inside:
            module.__class__ = HeldBatchNorm
            module.known = f"{name}.running_mean" in names  # type: ignore[assignment]
            module.sums = None  # type: ignore[assignment]
            module.eval()


@torch.no_grad()
def measure_norms(model: Any, images: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Give those whose statistics are not known the ones of some images.

    Args:
        images: batches of pixel_values, normalised, and pixel_mask.
    """
    unknown = [m for m in model.modules() if isinstance(m, HeldBatchNorm) and not m.known]
    if not unknown:
        return
    for norm in unknown:
        norm.sums = torch.zeros(
            3, norm.num_features, dtype=torch.float64, device=norm.weight.device
        )
    for pixel_values, _ in images:
        model(pixel_values)
    for norm in unknown:
        assert norm.sums is not None
        count, total, squares = norm.sums
        norm.sums, norm.known = None, True
        if bool((count > 0).all()):
            mean = total / count
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_((squares / count - mean.square()).clamp(min=0))  # type: ignore[union-attr]
