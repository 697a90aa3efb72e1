"""A frozen backbone computes on a copy that is made for it: each convolution has taken in the batch norm behind it,
and maps lie in memory as convolutions like them.

The backbone's own tensors stay what they were, in parameters, state_dict, fingerprint, checkpoint and export.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

KINDS = ("hgnet_v2", "resnet", "rt_detr_resnet")
"""Model types in which it is faster (docs/benchmarks.md); a ConvNeXt has no batch norm, and no gain"""
ON_THE_INSTANCE = ("forward", "train")
"""Methods of a frozen module that are its own and not its class's"""
FROZEN_EPS = 1e-5
"""Of the batch norms that transformers puts into detectors, which do not tell it"""


def fold(backbone: nn.Module) -> None:
    """Let a frozen backbone compute on such a copy, if that is faster in its kind."""
    config: Any = backbone.config
    if config.model_type in KINDS:
        backbone.forward = Folded(backbone)  # type: ignore[method-assign, assignment]


@contextlib.contextmanager
def unfolded(model: nn.Module) -> Iterator[None]:
    """Inside the block whatever is folded in a model computes with its own tensors, as whoever loads them does."""
    found = [f for m in model.modules() if isinstance(f := m.__dict__.get("forward"), Folded)]
    for folded in found:
        folded.active = False
    try:
        yield
    finally:
        for folded in found:
            folded.active = True


class Folded:
    """The forward pass of a frozen backbone, on a copy that is made at its first call, and made anew when the
    backbone's tensors have been moved or changed."""

    def __init__(self, backbone: nn.Module):
        """
        Args:
            backbone: one of `KINDS`, of which nothing trains.
        """
        self.backbone = backbone
        self.active = True
        self.own = backbone.forward
        # Not the tensors themselves: a move to another device replaces buffers.
        self._places = [
            (tensors, name)
            for module in backbone.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._made_of: list[tuple[int, int]] = []
        self._copy: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the backbone's own; the maps lie in the usual order of memory, as stored ones do.

        Args:
            pixel_values: [B, 3, H, W].
        """
        if not self.active:
            return self.own(pixel_values, *args, **kwargs)
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        output = self._folded()(pixel_values, *args, **kwargs)
        output.feature_maps = tuple(found.contiguous() for found in output.feature_maps)
        return output

    def _folded(self) -> nn.Module:
        tensors: list[Any] = [tensors[name] for tensors, name in self._places]
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._copy is None or state != self._made_of:
            self._copy, self._made_of = folded_copy(self.backbone), state
        return self._copy


def folded_copy(backbone: nn.Module) -> nn.Module:
    """A backbone that computes the same with fewer passes over its maps, and gives no gradient."""
    own = {n: backbone.__dict__.pop(n) for n in ON_THE_INSTANCE if n in backbone.__dict__}
    try:
        copied = copy.deepcopy(backbone)
    finally:
        backbone.__dict__.update(own)
    for module in list(copied.modules()):
        norm = getattr(module, "normalization", None)
        convolution = getattr(module, "convolution", None)
        if isinstance(convolution, nn.Conv2d) and hasattr(norm, "running_var"):
            _take_in(convolution, norm)
            module.normalization = nn.Identity()
            _work_in_place(module)
    return copied.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _take_in(convolution: nn.Conv2d, norm: Any) -> None:
    """Scale the weights of a convolution and shift its outputs as the norm behind it does."""
    weight, scale, shift, mean, variance = (
        tensor.detach().cpu().double()  # not every device has float64
        for tensor in (
            *(convolution.weight, norm.weight, norm.bias),
            *(norm.running_mean, norm.running_var),
        )
    )
    scale = scale * (variance + getattr(norm, "eps", FROZEN_EPS)).rsqrt()
    bias = shift - mean * scale
    if convolution.bias is not None:
        bias += convolution.bias.detach().cpu().double() * scale
    like = convolution.weight.detach()
    convolution.weight = nn.Parameter((weight * scale[:, None, None, None]).to(like))
    convolution.bias = nn.Parameter(bias.to(like))


def _work_in_place(module: Any) -> None:
    """Nobody else reads what the convolution of this layer gave: memory need not be fetched for each pass."""
    if isinstance(getattr(module, "activation", None), nn.ReLU):
        module.activation = nn.ReLU(inplace=True)
    affine = getattr(module, "lab", None)
    if hasattr(affine, "scale"):
        module.lab = _AffineInPlace(affine)


class _AffineInPlace(nn.Module):
    """HGNetV2's factor and shift for all channels alike."""

    def __init__(self, affine: Any):
        super().__init__()
        self.scale, self.bias = affine.scale, affine.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.mul_(self.scale).add_(self.bias)
