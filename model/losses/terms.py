"""What every criterion takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from data.batch import Batch


@dataclass(frozen=True)
class Counts:
    """What a step has to know of each micro-batch before its losses can be computed, by name."""

    sums: Mapping[str, float]
    """Added up over all micro-batches and ranks"""
    maxima: Mapping[str, float] = field(default_factory=dict)
    """The largest over all micro-batches and ranks"""

    @property
    def alone(self) -> dict[str, float]:
        """The step's counts, where this micro-batch is the whole step."""
        return {**self.sums, **self.maxima}


@dataclass(frozen=True)
class Losses:
    """A micro-batch's share of the step's loss: the shares of all add up to it."""

    total: torch.Tensor
    """Weighted sum of the terms, scalar"""
    terms: dict[str, torch.Tensor]
    """By name, unweighted, scalars"""


class Criterion(Protocol):
    """The losses of a head. Every term is a sum over the micro-batch divided by a count of the step."""

    def counts(self, batch: Batch) -> Counts:
        """What the step needs from this micro-batch; the names do not depend on the batch."""
        ...

    def __call__(self, outputs: Any, batch: Batch, step_counts: Mapping[str, float]) -> Losses:
        """
        Args:
            outputs: what the head family's `outputs` gave. step_counts: of the whole step, by the
                names of `counts`.
        """
        ...
