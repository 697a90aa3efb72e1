"""Which prediction finds which true object, and what the others do wrong.

Two are the same from an IoU of 0.5 on, of boxes, or of masks where both have them. Matching is that of COCO: in an
image, predictions of a class choose by falling score, each the free object of its class that it covers best; those
on a crowd of their class count as nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from accelerate import Accelerator
from faster_coco_eval.core import mask as mask_api

from data.boxes import to_corners
from data.masks import to_rle
from data.objects import Objects
from data.schema import Split
from evaluation.sharing import gather_rows, own_images

SAME_IOU = 0.5
LOOSE_IOU = 0.1
"""A prediction of the right class that covers so much of an object that nothing else finds is a loose one"""
MOST_OF_A_CLASS = 100
"""Of an image and a class, COCO looks at the best only"""
PAIRS_AT_ONCE = 2_000_000
FOUND, CONFUSED, LOOSE, FALSE_ALARM = range(4)
"""What a prediction can be"""


@dataclass(frozen=True)
class Pairs:
    """Predictions and true objects of one image that overlap, on this rank's images."""

    found: np.ndarray
    """int64 [n]: places of the predictions"""
    truth: np.ndarray
    """int64 [n]: places of the true objects"""
    iou: np.ndarray
    """float64 [n]; with a crowd the part of the prediction that lies on it"""

    def take(self, chosen: np.ndarray) -> "Pairs":
        """Some of them: a mask [n], or places."""
        return Pairs(self.found[chosen], self.truth[chosen], self.iou[chosen])


@dataclass(frozen=True)
class Matching:
    """Predictions of all images against the truth, before any threshold; the same on all ranks."""

    truth: np.ndarray
    """int64 [P]: place of the object of its class that a prediction finds; -1: none"""
    ignored: np.ndarray
    """bool [P]: lies on a crowd of its class, or behind the best hundred of its class"""
    pairs: Pairs
    """Of this rank's images, from LOOSE_IOU on"""


@dataclass(frozen=True)
class Outcome:
    """What became of the predictions that a threshold lets through; the same on all ranks."""

    found: np.ndarray
    """int64 [n]: their places"""
    kind: np.ndarray
    """int64 [n]: FOUND, CONFUSED, LOOSE or FALSE_ALARM"""
    truth: np.ndarray
    """int64 [n]: place of the object that it finds, takes for another class, surrounds loosely, or (as a false alarm)
    finds although a better prediction does; -1: none"""
    iou: np.ndarray
    """float64 [n]: with that object"""


def match(split: Split, found: Objects, accelerator: Accelerator | None = None) -> Matching:
    """Collective: called on every rank, each with its share of the images.

    Args:
        found: of the whole split, by image and falling score.
    """
    truth = split.objects
    own = np.isin(found.image, np.asarray(own_images(len(split), accelerator)))
    pairs = overlaps(truth, found, np.flatnonzero(own), split)
    rank = _rank_in_class(found)
    same = pairs.iou >= SAME_IOU
    same &= truth.classes[pairs.truth] == found.classes[pairs.found]
    same &= rank[pairs.found] < MOST_OF_A_CLASS
    crowd = truth.iscrowd[pairs.truth]
    chosen, _ = choose(pairs.take(same & ~crowd), rank, len(found), len(truth))
    ignored = rank >= MOST_OF_A_CLASS
    ignored[pairs.found[same & crowd]] = True
    ignored &= chosen < 0
    places = np.flatnonzero(own)
    rows = gather_rows(accelerator, np.column_stack([places, chosen[places], ignored[places]]))
    everyone = np.full(len(found), -1)
    everyone[rows[:, 0]] = rows[:, 1]
    ignored = np.zeros(len(found), bool)
    ignored[rows[:, 0]] = rows[:, 2] > 0
    return Matching(everyone, ignored, pairs)


def outcome(
    split: Split,
    found: Objects,
    matching: Matching,
    threshold: float,
    accelerator: Accelerator | None = None,
) -> Outcome:
    """Collective: called on every rank. What the predictions from `threshold` on are.

    An object that nothing of its class finds may be taken for another class, or else be surrounded loosely; each
    prediction is one thing, and each object is of one prediction.
    """
    truth, pairs = split.objects, matching.pairs
    shown = (found.scores >= threshold) & ~matching.ignored
    own = np.zeros(len(found), bool)
    own[np.isin(found.image, np.asarray(own_images(len(split), accelerator)))] = True
    kind = np.where(matching.truth >= 0, FOUND, FALSE_ALARM)
    other, iou = matching.truth.copy(), np.zeros(len(found))
    _note_iou(iou, pairs, other)
    free = ~truth.iscrowd
    free[other[shown & (other >= 0)]] = False
    order = np.arange(len(found)) - np.searchsorted(found.image, found.image)
    same_class = truth.classes[pairs.truth] == found.classes[pairs.found]
    for what, wanted in (
        (CONFUSED, (pairs.iou >= SAME_IOU) & ~same_class),
        (LOOSE, (pairs.iou < SAME_IOU) & same_class),
    ):
        wanted = wanted & free[pairs.truth] & shown[pairs.found] & (kind[pairs.found] > LOOSE)
        chosen, overlap = choose(pairs.take(wanted), order, len(found), len(truth))
        got = chosen >= 0
        kind[got], other[got], iou[got] = what, chosen[got], overlap[got]
        free[chosen[got]] = False
    again = pairs.take((pairs.iou >= SAME_IOU) & same_class & ~truth.iscrowd[pairs.truth])
    again = again.take((kind[again.found] == FALSE_ALARM) & ~free[again.truth])
    again = again.take(np.argsort(again.iou, kind="stable"))
    other[again.found], iou[again.found] = again.truth, again.iou
    places = np.flatnonzero(own & shown)
    columns = np.column_stack([places, kind[places], other[places], iou[places]])
    rows = gather_rows(accelerator, columns.astype(np.float64))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    places, kind, other = (rows[:, column].astype(np.int64) for column in range(3))
    return Outcome(places, kind, other, rows[:, 3])


def _note_iou(iou: np.ndarray, pairs: Pairs, chosen: np.ndarray) -> None:
    taken = chosen[pairs.found] == pairs.truth
    iou[pairs.found[taken]] = pairs.iou[taken]


def choose(
    pairs: Pairs, turn: np.ndarray, num_found: int, num_truth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Let predictions choose in turn, each the free object with the highest IoU (of equal ones the last).

    All predictions with one turn choose at once: none of them may want what another one wants.

    Args:
        turn: int64 [P].

    Returns: place of what each one has chosen, int64 [P], -1 for nothing; the IoU with it, float64 [P].
    """
    chosen, overlap = np.full(num_found, -1), np.zeros(num_found)
    taken = np.zeros(num_truth, bool)
    pairs = pairs.take(np.lexsort((-pairs.truth, -pairs.iou, pairs.found, turn[pairs.found])))
    turns = turn[pairs.found]
    for start, end in _runs(turns):
        part = pairs.take(np.arange(start, end))
        part = part.take(~taken[part.truth])
        who, first = np.unique(part.found, return_index=True)
        chosen[who], overlap[who] = part.truth[first], part.iou[first]
        taken[part.truth[first]] = True
    return chosen, overlap


def overlaps(truth: Objects, found: Objects, places: np.ndarray, split: Split) -> Pairs:
    """Pairs from LOOSE_IOU on of the predictions at `places`, int64 [n], which rise."""
    if found.masks is None or truth.masks is None:
        parts = [p.take(p.iou >= LOOSE_IOU) for p in _box_pairs(truth, found, places)]
    else:
        touching = [p.take(p.iou > 0) for p in _box_pairs(truth, found, places)]
        parts = [_mask_pairs(truth, found, p, split) for p in touching]
    columns = ("found", "truth", "iou")
    nothing = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate([getattr(p, c) for p in [nothing, *parts]]) for c in columns))


def _box_pairs(truth: Objects, found: Objects, places: np.ndarray) -> Iterator[Pairs]:
    """All pairs of an image's predictions and objects with the IoU of their boxes, some at a time."""
    first = np.searchsorted(truth.image, found.image[places], side="left")
    num = np.searchsorted(truth.image, found.image[places], side="right") - first
    corners = to_corners(truth.boxes), to_corners(found.boxes)
    ends = np.cumsum(num)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, PAIRS_AT_ONCE))
    bounds = [*np.unique(cuts).tolist(), len(places)]
    for start, end in pairwise(bounds):
        own = num[start:end]
        f = np.repeat(places[start:end], own)
        t = np.repeat(first[start:end] - (np.cumsum(own) - own), own) + np.arange(own.sum())
        low = np.maximum(corners[0][t, :2], corners[1][f, :2])
        high = np.minimum(corners[0][t, 2:], corners[1][f, 2:])
        both = (high - low).clip(0).prod(1)
        area = found.boxes[f, 2:].prod(1)
        either = area + np.where(truth.iscrowd[t], 0.0, truth.boxes[t, 2:].prod(1) - both)
        iou = np.divide(both, either, out=np.zeros(len(both)), where=either > 0)
        yield Pairs(f, t, iou)


def _mask_pairs(truth: Objects, found: Objects, pairs: Pairs, split: Split) -> Pairs:
    """The pairs with the IoU of their masks, from LOOSE_IOU on."""
    iou = np.zeros(len(pairs.found))
    images, sizes = found.image[pairs.found], split.table.sizes
    for start, end in _runs(images):
        size = tuple(sizes[images[start]].tolist())
        tables = []
        for objects, places in ((found, pairs.found), (truth, pairs.truth)):
            own, row = np.unique(places[start:end], return_inverse=True)
            coded = [to_rle(mask, size).coco() for mask in objects.masks[own]]
            tables.append((own, row, coded))
        crowd = truth.iscrowd[tables[1][0]].astype(np.uint8).tolist()
        table = np.asarray(mask_api.iou(tables[0][2], tables[1][2], crowd))
        iou[start:end] = table[tables[0][1], tables[1][1]]
    pairs = replace(pairs, iou=iou)
    return pairs.take(iou >= LOOSE_IOU)


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Beginning and end of each run of equal values, which are not negative."""
    yield from pairwise([*np.flatnonzero(np.diff(values, prepend=-1)).tolist(), len(values)])


def _rank_in_class(found: Objects) -> np.ndarray:
    """int64 [P]: how many predictions of its image and class come before each one."""
    order = np.lexsort((found.classes, found.image))  # stable: by falling score within
    group = np.column_stack([found.image, found.classes])[order]
    new = np.ones(len(group), bool)
    new[1:] = (group[1:] != group[:-1]).any(1)
    start = np.flatnonzero(new)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(start, np.diff([*start, len(group)]))
    return rank
