"""What every criterion takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from data.batch import Batch

MasksOf = Callable[[int, int, torch.Tensor | slice], torch.Tensor]
"""(layer, image, queries) -> logits of these queries' masks [k, h, w]; so that those of all queries
and layers need not be kept at once"""


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


class Losses(NamedTuple):
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


def class_cross_entropy(
    logits: torch.Tensor,
    matched: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    classes: torch.Tensor,
    step_counts: Mapping[str, float],
    no_object_weight: float,
) -> tuple[torch.Tensor, float]:
    """Sum of each layer's weighted cross-entropy, [L], and the step's weight to divide it by.

    Args:
        logits: [L, B, Q, C + 1], the last one of no object. matched: layer, image, query of each match.
        classes: of each match. step_counts: with `matched` and `images`.
    """
    no_object = logits.shape[-1] - 1
    goal = torch.full(logits.shape[:3], no_object, device=logits.device)
    goal[matched] = classes
    weight = torch.ones(no_object + 1, dtype=logits.dtype, device=logits.device)
    weight[no_object:] = no_object_weight  # a GPU would be waited for to write a single place
    loss = F.cross_entropy(logits.flatten(0, 2), goal.flatten(), weight, reduction="none")
    unmatched = step_counts["images"] * logits.shape[2] - step_counts["matched"]
    total_weight = step_counts["matched"] + no_object_weight * unmatched
    return loss.view(logits.shape[0], -1).sum(1), total_weight


def object_counts(name: str, batch: Batch, num_queries: int) -> Counts:
    """Objects (under `name`), those of them that find a query, and images."""
    matched = sum(min(num, num_queries) for num in batch.num_objects)
    images = len(batch.num_objects)
    return Counts({name: sum(batch.num_objects), "matched": matched, "images": images})


def by_layer(terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scalars of terms [L]: that of layer i < L - 1 is called `name_i`, that of the last `name`."""
    return {
        name if layer == len(values) - 1 else f"{name}_{layer}": values[layer]
        for name, values in terms.items()
        for layer in range(len(values))
    }


def fp32(tensor: torch.Tensor) -> torch.Tensor:
    """At least fp32; fp64 stays, for exactness tests."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
