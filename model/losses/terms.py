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

MATCHED_WEIGHT = "matched_weight"
"""The step's count of what the classes of all matches weigh"""


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
    class_weights: torch.Tensor | None,
    step_counts: Mapping[str, float],
    no_object_weight: float,
) -> tuple[torch.Tensor, float]:
    """Sum of each layer's weighted cross-entropy, [L], and the step's weight to divide it by.

    Args:
        logits: [L, B, Q, C + 1], the last one of no object. matched: layer, image, query of each match.
        classes: of each match. class_weights: of each match, [K]; None: 1. step_counts: those of `object_counts`.
    """
    no_object = logits.shape[-1] - 1
    goal = torch.full(logits.shape[:3], no_object, device=logits.device)
    goal[matched] = classes
    weight = torch.ones(no_object + 1, dtype=logits.dtype, device=logits.device)
    weight[no_object:] = no_object_weight  # a GPU would be waited for to write a single place
    loss = F.cross_entropy(logits.flatten(0, 2), goal.flatten(), weight, reduction="none")
    loss = weighed(loss.view(goal.shape), matched, class_weights)
    unmatched = step_counts["images"] * logits.shape[2] - step_counts["matched"]
    of_matches = step_counts["matched" if class_weights is None else MATCHED_WEIGHT]
    total_weight = of_matches + no_object_weight * unmatched
    return loss.flatten(1).sum(1), total_weight or 1.0


def weighed(
    loss: torch.Tensor, place: tuple[torch.Tensor, ...], weights: torch.Tensor | None
) -> torch.Tensor:
    """The loss of every element, where that of a match is multiplied by the weight of its class.

    All other elements, of queries without an object and of other classes than a match's own, say what is not
    there, and weigh 1.

    Args:
        place: of the element of each match. weights: of each match, [K]; None: 1.
    """
    if weights is None:
        return loss
    factor = torch.ones_like(loss)
    factor[place] = weights.to(loss.dtype)
    return loss * factor


def object_counts(name: str, batch: Batch, num_queries: int) -> Counts:
    """Objects (under `name`), those of them that find a query, images, and where classes have weights those of
    the matches.

    Which objects of an image with more than `num_queries` find one is not known before the forward pass, and
    differs from layer to layer: each counts for the part of them that do.
    """
    found = [min(num, num_queries) for num in batch.num_objects]
    counts: dict[str, float] = {
        name: sum(batch.num_objects),
        "matched": sum(found),
        "images": len(found),
    }
    if batch.objects.weights is not None:
        own = batch.objects.weights.double().split(list(batch.num_objects))
        counts[MATCHED_WEIGHT] = sum(
            float(weights.sum()) * part / max(len(weights), 1)
            for weights, part in zip(own, found, strict=True)
        )
    return Counts(counts)


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
