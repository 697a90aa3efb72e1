"""Images that come more than once in an epoch, since they have rare classes (Gupta et al. 2019,
https://arxiv.org/abs/1908.03195): which, is a pure function of (seed, epoch)."""

import math
from collections.abc import Sequence

import numpy as np

from data.schema import Split

REPEATS = 1
"""Tells the seed of an epoch's images from that of their order"""


class Repeats:
    """The images of each epoch, of which image i is there `factors[i]` times on average.

    An epoch has the same length as every other one, and image i floor(f) or ceil(f) times in it, at least once, where
    f is its factor up to the rounding of that length.
    """

    def __init__(self, factors: np.ndarray, seed: int):
        """
        Args:
            factors: float64 [N], at least 1.
        """
        self.factors = factors
        self._ends = np.cumsum(factors)
        self._length = math.ceil(
            float(self._ends[-1])
        )  # rounded down, some images would be left out
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def images(self, epoch: int) -> np.ndarray:
        """int64 [length of an epoch]: the images of an epoch, rising."""
        start = np.random.default_rng([self._seed, epoch, REPEATS]).random()
        marks = (np.arange(self._length) + start) * (self._ends[-1] / self._length)
        # Rounding may put the last mark on the last end.
        return np.minimum(np.searchsorted(self._ends, marks, side="right"), len(self._ends) - 1)


def repeat_factors(
    image: np.ndarray, classes: np.ndarray, num_images: int, threshold: float
) -> np.ndarray:
    """float64 [N]: how often each image is to come in an epoch.

    A class that is on the part f of all images has sqrt(threshold / f), at least 1, and an image the most of its classes.

    Args:
        image, classes: int64 [n], of all objects that are learnt.
    """
    pairs = np.unique(np.column_stack([image, classes]), axis=0)
    parts = np.bincount(pairs[:, 1]) / num_images
    of_classes = np.sqrt(np.maximum(1.0, threshold / np.maximum(parts, 1 / num_images)))
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[:, 0], of_classes[pairs[:, 1]])
    return factors


def repeats_of(split: Split, threshold: float | None, seed: int) -> Repeats | None:
    """Those of a training split; None if each image is to come once."""
    if threshold is None:
        return None
    objects = split.objects
    if objects.iscrowd is not None:
        objects = objects.take(~objects.iscrowd)
    factors = repeat_factors(objects.image, objects.classes, len(split), threshold)
    return Repeats(factors, seed) if factors.max(initial=1.0) > 1.0 else None


def repeats_text(repeats: Repeats, names: Sequence[str], split: Split) -> str:
    """What a run says of it: how often the images of the rarest class come."""
    objects = split.objects
    place = int(repeats.factors.argmax())
    on_it = objects.classes[objects.image == place]
    counts = np.bincount(objects.classes, minlength=len(names))
    rarest = int(on_it[counts[on_it].argmin()])
    return (
        f"images of rare classes come more often, of {names[rarest]} {repeats.factors.max():.1f} times an epoch, which "
        f"has {len(repeats):,} samples of {len(split):,} images"
    )
