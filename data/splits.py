"""Validation images taken out of a training split."""

import math

import numpy as np

from data.schema import Split
from errors import UserError


def split_off(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """(training, validation) parts; a pure function of the number of images, fraction and seed.

    Raises:
        UserError: if there are too few images to split.
    """
    num_val = max(1, math.floor(len(train) * fraction + 0.5))
    if num_val >= len(train):
        raise UserError(
            f"{len(train)} training image(s) cannot be split by data.val_fraction {fraction}; "
            "set data.val_split, or data.val_on_train true for a debugging run"
        )
    order = np.random.default_rng([seed, len(train)]).permutation(len(train))
    return train.subset(sorted(order[num_val:])), train.subset(sorted(order[:num_val]))
