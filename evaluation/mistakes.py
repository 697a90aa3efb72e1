"""What a model gets wrong: which classes it takes for which, in which images, and from which score on it is best."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate import Accelerator

from data.collector import without_collector
from data.objects import Objects
from data.regions import label_map, segment_map
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.curves import THRESHOLDS, Curves, curves, mean, recommended
from evaluation.matching import CONFUSED, FALSE_ALARM, FOUND, LOOSE, Outcome, match, outcome
from evaluation.predictions import Predictions
from evaluation.sharing import gather_rows, own_images
from settings.tasks import EVERY_PIXEL, Labels

USUAL_THRESHOLD = 0.5
"""Where no threshold is better than another one"""
MOST_WORST = 24


@dataclass(frozen=True)
class BadImage:
    """An image and what is wrong with it."""

    place: int
    """In its split"""
    mistakes: float
    """Their number; where every pixel has a class, the part of the known pixels that is wrong"""
    rows: np.ndarray
    """int64 [n, 3]: what (CONFUSED, LOOSE, FALSE_ALARM, or MISSED), place of the prediction, of the object; -1 for
    none. Where every pixel has a class: pixels, true class, predicted class (number of classes: none)"""


MISSED = 4
"""A true object that no prediction has anything to do with"""


@dataclass(frozen=True)
class Analysis:
    """Of one evaluation; the same on all ranks."""

    confusion: np.ndarray
    """int64 [C + 1, C + 1]: of the true class (row) taken for the predicted one (column): objects, or pixels. Last
    row: predictions where there is nothing; last column: what is missed"""
    worst: Sequence[BadImage]
    curves: Curves | None = None
    threshold: int | None = None
    """Place of the recommended one in THRESHOLDS"""
    outcome: Outcome | None = field(default=None, repr=False)

    @property
    def score(self) -> float:
        """The recommended threshold, or the usual one."""
        return USUAL_THRESHOLD if self.threshold is None else float(THRESHOLDS[self.threshold])

    def totals(self) -> dict[str, float]:
        """Numbers for metrics.json: `threshold` (recommended), and mean F1, precision and recall over classes there; the
        precision of a class of which nothing is found counts as 0."""
        if self.curves is None or self.threshold is None:
            return {}
        found = self.curves
        values = {"F1": found.f1, "precision": found.counted_precision, "recall": found.recall}
        at = {name: float(mean(rows)[self.threshold]) for name, rows in values.items()}
        return {"threshold": self.score, **at}

    def scores(self) -> dict[str, np.ndarray]:
        """int64 [100] each: `right` predictions, which find something, and `wrong` ones, by hundredths of their score."""
        if self.curves is None:
            return {}
        tables = {"right": self.curves.right, "wrong": self.curves.wrong}
        own = {name: -np.diff(rows.sum(0), append=0) for name, rows in tables.items()}
        return {name: np.append(n[:-2], n[-2:].sum()) for name, n in own.items()}  # 1.0 is no cell


def analyse(
    labels: Labels,
    split: Split,
    predictions: Predictions,
    taxonomy: Taxonomy,
    accelerator: Accelerator | None = None,
) -> Analysis:
    """Collective: called on every rank, with the same predictions, each with its share of the images."""
    with without_collector():
        if labels in EVERY_PIXEL:
            return _of_pixels(labels, split, predictions.objects, taxonomy, accelerator)
        return _of_objects(split, predictions.objects, taxonomy, accelerator)


def _of_objects(
    split: Split, found: Objects, taxonomy: Taxonomy, accelerator: Accelerator | None
) -> Analysis:
    num = len(taxonomy.names)
    matching = match(split, found, accelerator)
    by_threshold = curves(split, found, matching, num)
    best = recommended(by_threshold)
    score = USUAL_THRESHOLD if best is None else float(THRESHOLDS[best])
    seen = outcome(split, found, matching, score, accelerator)
    truth = split.objects
    known = seen.truth[(seen.kind == FOUND) | (seen.kind == CONFUSED)]
    free = ~truth.iscrowd
    free[known] = False
    missed = np.flatnonzero(free)
    nothing = (seen.kind == LOOSE) | (seen.kind == FALSE_ALARM)
    classes = np.append(truth.classes, num)  # of place -1, which stands for nothing
    rows = np.concatenate([classes[np.where(nothing, -1, seen.truth)], truth.classes[missed]])
    columns = np.concatenate([found.classes[seen.found], np.full(len(missed), num)])
    table = np.bincount(rows * (num + 1) + columns, minlength=(num + 1) ** 2)
    worst = _worst_of_objects(found, truth, seen, missed, len(split))
    return Analysis(table.reshape(num + 1, num + 1), worst, by_threshold, best, seen)


def _worst_of_objects(
    found: Objects, truth: Objects, seen: Outcome, missed: np.ndarray, num_images: int
) -> list[BadImage]:
    """Images by the number of their mistakes; an object that is surrounded loosely is one of them, not two."""
    wrong = np.flatnonzero(seen.kind != FOUND)
    missed = missed[~np.isin(missed, seen.truth[seen.kind == LOOSE])]
    nobody = np.full(len(missed), -1)
    rows = np.concatenate(
        [
            np.column_stack([seen.kind[wrong], seen.found[wrong], seen.truth[wrong]]),
            np.column_stack([nobody + 1 + MISSED, nobody, missed]),
        ]
    )
    images = np.concatenate([found.image[seen.found[wrong]], truth.image[missed]])
    counts = np.bincount(images, minlength=num_images)
    order = np.argsort(-counts, kind="stable")[:MOST_WORST]
    return [
        BadImage(place, float(counts[place]), rows[images == place])
        for place in order.tolist()
        if counts[place]
    ]


def _of_pixels(
    labels: Labels,
    split: Split,
    found: Objects,
    taxonomy: Taxonomy,
    accelerator: Accelerator | None,
) -> Analysis:
    """Of pixels whose class is known."""
    num = len(taxonomy.names)
    table = np.zeros((num + 1, num + 1), np.int64)
    found_by_image = found.by_image(len(split))
    parts = []
    for place in own_images(len(split), accelerator):
        record = split.records[place]
        size = (record.height, record.width)
        if record.unreadable and size == (1, 1):
            continue  # nobody knows how large it is
        true = _class_map(labels, record.objects, size, taxonomy, taxonomy.background)
        other = _class_map(labels, found_by_image[place], size, taxonomy, None)
        known = true < num
        pairs = true[known] * (num + 1) + other[known]
        own = np.bincount(pairs, minlength=table.size).reshape(table.shape)
        table += own
        wrong = own.copy()
        np.fill_diagonal(wrong, 0)
        worst = np.argsort(-wrong, axis=None, kind="stable")[:3]
        share = wrong.sum() / max(1, own.sum())
        for cell in worst[wrong.ravel()[worst] > 0].tolist():
            parts.append([place, share, wrong.flat[cell], *divmod(cell, num + 1)])
    tables = gather_rows(accelerator, table.reshape(-1, 1)).reshape(-1, *table.shape)
    rows = gather_rows(accelerator, np.array(parts, dtype=np.float64).reshape(-1, 5))
    rows = rows[np.lexsort((-rows[:, 2], rows[:, 0], -rows[:, 1]))]
    places = list(dict.fromkeys(rows[:, 0].astype(int).tolist()))[:MOST_WORST]
    own_rows = {place: rows[rows[:, 0] == place] for place in places}
    worst_images = [
        BadImage(place, float(own[0, 1]), own[:, 2:].astype(np.int64))
        for place, own in own_rows.items()
    ]
    return Analysis(tables.sum(0), worst_images)


def _class_map(
    labels: Labels,
    objects: Objects,
    size: tuple[int, int],
    taxonomy: Taxonomy,
    background: int | None,
) -> np.ndarray:
    """int64 [H, W]: class of every pixel, the number of classes where it is not known."""
    if labels == "regions":
        drawn = label_map(objects, size, background).astype(np.int64) - 1
    else:
        segments, classes = segment_map(objects, size, taxonomy.stuff, background)
        drawn = np.append(-1, classes)[segments]
    return np.where(drawn < 0, len(taxonomy.names), drawn)


def words(bad: BadImage, found: Objects, truth: Objects, names: Sequence[str], pixels: bool) -> str:
    """What is wrong with an image, in one line."""
    if pixels:
        told = [f"{_name(names, row[1])} taken for {_name(names, row[2])}" for row in bad.rows]
        return f"{bad.mistakes:.0%} of its pixels are wrong, most of them {', '.join(told)}"
    return ", ".join(row_text(row, found, truth, names) for row in bad.rows)


def row_text(row: Any, found: Objects, truth: Objects, names: Sequence[str]) -> str:
    """One mistake: `car missed`, `car 0.83 is truck`, `car 0.83 is nothing`, ...."""
    kind, place, other = map(int, row)
    if kind == MISSED:
        return f"{names[truth.classes[other]]} missed"
    own = f"{names[found.classes[place]]} {found.scores[place]:.2f}"
    if kind == CONFUSED:
        return f"{own} is {names[truth.classes[other]]}"
    if kind == LOOSE:
        return f"{own} is loose"
    return f"{own} is nothing" if other < 0 else f"{own} is one too many"


def _name(names: Sequence[str], kind: int) -> str:
    return names[kind] if kind < len(names) else "nothing"
