"""Checks of train.class_weights that need no data."""

import math
from collections.abc import Iterator

from settings.keys import TrainConfig

LARGEST_WEIGHT = 1e6


def check_class_weights(train: TrainConfig) -> Iterator[str]:
    """What is wrong with the table, for people."""
    if not isinstance(train.class_weights, dict):
        return
    if not train.class_weights:
        yield "train.class_weights {}: is empty; name classes, or leave it out"
    for name, weight in train.class_weights.items():
        if not isinstance(name, str):
            yield f"train.class_weights {name}: is no name to YAML; write it in quotes"
        if weight < 0 or LARGEST_WEIGHT < weight < math.inf:
            yield f"train.class_weights.{name} {weight:g}: must lie in 0 ... {LARGEST_WEIGHT:g}"
