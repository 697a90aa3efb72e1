"""Losses, speed and waiting of the steps between two log lines."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

T = TypeVar("T")


class StepMeter:
    """Adds up a step's losses on the device, and the time spent waiting for data."""

    def __init__(self, accelerator: Accelerator, images_per_step: int):
        self.accelerator = accelerator
        self.images_per_step = images_per_step
        self.losses: dict[str, torch.Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin a new window of time."""
        self._started = time.perf_counter()
        self._waited_s = 0.0
        self._steps = 0

    def next_step(self, load: Callable[[], T]) -> T:
        """Begin a step by loading its data; the time it takes counts as waiting."""
        start = time.perf_counter()
        loaded = load()
        self._waited_s += time.perf_counter() - start
        self._steps += 1
        return loaded

    def restart_losses(self) -> None:
        """Begin to add up a step's losses."""
        self.losses = {}

    def add(self, loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> None:
        """Add a micro-batch's share of the step's loss and its terms."""
        for name, value in {"loss": loss, **terms}.items():
            value = value.detach()
            self.losses[name] = self.losses[name] + value if name in self.losses else value

    def values(self, grad_norm: torch.Tensor, lr: float) -> dict[str, Any]:
        """Collective: called on every rank. Numbers of this step, as metrics.jsonl has them."""
        names = sorted(self.losses)
        sums = self.accelerator.reduce(
            torch.stack([self.losses[n] for n in names]), reduction="sum"
        )
        seconds = time.perf_counter() - self._started
        values: dict[str, Any] = {
            f"train/{name}": value for name, value in zip(names, sums.tolist(), strict=True)
        }
        values["train/lr"] = lr
        values["train/grad_norm"] = float(grad_norm)
        values["time/data_wait_%"] = 100 * self._waited_s / seconds
        values["time/images_per_s"] = self.images_per_step * self._steps / seconds
        self.restart()
        return values


def memory_mb(device: torch.device) -> float | None:
    """Peak memory of the CUDA device in MB (10^6 bytes), None elsewhere."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def take(stream: Iterator[T], number: int) -> Callable[[], list[T]]:
    """A function that takes the next `number` items."""
    return lambda: [next(stream) for _ in range(number)]
