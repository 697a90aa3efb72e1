"""Batches whose classes have weights."""

import dataclasses
from collections.abc import Sequence

import torch

CLASS_WEIGHTS = (0.25, 4.0, 0.0)
"""Of the classes of `builders.make_batch`"""
WEIGHTED = " weighted"
"""End of the name of a case of builders.FOUR_IMAGES that has them"""


def with_weights(batch, weights: Sequence[float] = CLASS_WEIGHTS):
    """The batch whose classes have weights."""
    own = torch.tensor(weights)[batch.objects.classes]
    return dataclasses.replace(batch, objects=dataclasses.replace(batch.objects, weights=own))
