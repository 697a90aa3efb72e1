"""Precision, recall and F1 of a detector by its threshold, and the threshold that it should have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.objects import Objects
from data.schema import Split
from evaluation.matching import Matching

THRESHOLDS = np.arange(101) / 100
RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads precision"""
LEAST_F1 = 0.1
"""Below it a model finds next to nothing at any threshold, and the best one, often near 0, draws mostly noise"""


@dataclass(frozen=True)
class Curves:
    """At an IoU of 0.5. A class without objects has no row of numbers, but NaN."""

    right: np.ndarray
    """int64 [C, 101]: predictions from each of THRESHOLDS on that find something"""
    wrong: np.ndarray
    """int64 [C, 101]: those that do not"""
    objects: np.ndarray
    """int64 [C], without crowds"""
    precision_at_recall: np.ndarray
    """float64 [C, 101]: highest precision from each of RECALLS on, whose mean is AP50"""

    @property
    def precision(self) -> np.ndarray:
        """float64 [C, 101]; NaN where nothing is predicted."""
        return _ratio(self.right, self.right + self.wrong, self.objects)

    @property
    def counted_precision(self) -> np.ndarray:
        """float64 [C, 101]: of which the mean over classes is taken: a class of which nothing is predicted has 0 where others are."""
        silent = np.isnan(self.precision) & (self.objects > 0)[:, None]
        return np.where(silent & ~silent[self.objects > 0].all(0), 0.0, self.precision)

    @property
    def recall(self) -> np.ndarray:
        """float64 [C, 101]."""
        return _ratio(self.right, np.broadcast_to(self.objects[:, None], self.right.shape))

    @property
    def f1(self) -> np.ndarray:
        """float64 [C, 101]: harmonic mean of both."""
        return _ratio(2 * self.right, self.right + self.wrong + self.objects[:, None], self.objects)


def curves(split: Split, found: Objects, matching: Matching, num_classes: int) -> Curves:
    """Of all predictions.

    Args:
        found: by image and falling score.
    """
    truth = split.objects
    objects = np.bincount(truth.classes[~truth.iscrowd], minlength=num_classes)
    counted = ~matching.ignored
    scores, classes = found.scores[counted], found.classes[counted]
    right = matching.truth[counted] >= 0
    level = np.searchsorted(THRESHOLDS, scores, side="right") - 1
    tables = []
    for which in (right, ~right):
        cells = np.zeros((num_classes, len(THRESHOLDS)), np.int64)
        np.add.at(cells, (classes[which], level[which].clip(0)), 1)
        tables.append(np.cumsum(cells[:, ::-1], axis=1)[:, ::-1])
    order = np.lexsort((-scores, classes))  # stable: of equal scores by image
    ends = np.searchsorted(classes[order], np.arange(num_classes + 1))
    at_recall = np.full((num_classes, len(RECALLS)), np.nan)
    for c in np.flatnonzero(objects).tolist():
        at_recall[c] = _precision_at_recall(right[order[ends[c] : ends[c + 1]]], int(objects[c]))
    return Curves(tables[0], tables[1], objects, at_recall)


def _precision_at_recall(right: np.ndarray, objects: int) -> np.ndarray:
    """float64 [101] of one class, whose predictions come by falling score."""
    true = np.cumsum(right)
    precision = true / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(true / objects, RECALLS, side="left")
    return np.append(precision, 0.0)[place.clip(max=len(right))]


def mean(rows: np.ndarray) -> np.ndarray:
    """float64 [101]: over the classes that have a number; NaN where none has."""
    known = ~np.isnan(rows)
    num = known.sum(0)
    return np.where(num > 0, np.where(known, rows, 0.0).sum(0) / num.clip(1), np.nan)


def recommended(found: Curves) -> int | None:
    """Place in THRESHOLDS of the best mean F1; the middle where a whole range is as good, None where all is 0."""
    f1 = np.nan_to_num(mean(found.f1))
    if f1.max() <= 0:
        return None
    good = np.flatnonzero(f1 >= f1.max() - 1e-12)
    runs = np.split(good, np.flatnonzero(np.diff(good) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def worth_recommending(metrics: Mapping[str, Any] | None) -> float | None:
    """The threshold with which others should use a model; None where it is not known, or F1 is below LEAST_F1 there.

    Args:
        metrics: as in metrics.json.
    """
    known = metrics or {}
    f1 = known.get("F1")
    return None if f1 is not None and f1 < LEAST_F1 else known.get("threshold")


def _ratio(parts: np.ndarray, wholes: np.ndarray, objects: np.ndarray | None = None) -> np.ndarray:
    """NaN where there is nothing to divide by, or no object of the class."""
    out = np.full(parts.shape, np.nan)
    there = wholes > 0
    if objects is not None:
        there = there & (objects > 0)[:, None]
    return np.divide(parts, wholes, out=out, where=there)
