"""Exponential moving average of the weights that train."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from training.sharding import cut_like, own_part
from training.state import trainable_tensors


class Ema:
    """A second set of weights that follows the first; with `decay` None it is the first.

    After optimizer step n: average = d x average + (1 - d) x weights, where d rises to `decay`:
    d = min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten, as in TensorFlow's
    ExponentialMovingAverage with num_updates.
    """

    def __init__(self, model: nn.Module, decay: float | None):
        self.model = model
        self.decay = decay
        self.tensors: dict[str, torch.Tensor] = {}
        self._own: dict[str, torch.Tensor] = {}

    def start(self) -> None:
        """Begin at the weights as they are (unless an average was loaded)."""
        if self.decay is None:
            return
        self._own = {n: tensor.detach() for n, tensor in trainable_tensors(self.model).items()}
        if not self.tensors:
            self.tensors = {name: tensor.clone() for name, tensor in self._own.items()}
        self.tensors = {
            name: cut_like(tensor.to(self._own[name].device), self._own[name])
            for name, tensor in self.tensors.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow optimizer step `step`, counted from 1; a skipped step is none."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        real = [name for name, tensor in self._own.items() if tensor.is_floating_point()]
        for name in self._own.keys() - set(real):
            self.tensors[name].copy_(self._own[name])
        if real:
            averages, own = (
                [own_part(tensors[name]) for name in real] for tensors in (self.tensors, self._own)
            )
            torch._foreach_lerp_(averages, own, 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights in it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self.decay is None:
            return
        for name, tensor in self._own.items():
            kept = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
