"""Panoptic quality (Kirillov et al. 2019, https://arxiv.org/abs/1801.00868)."""

from typing import Any

import numpy as np
from accelerate import Accelerator

from data.objects import Objects
from data.regions import label_map, segment_map
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.predictions import Predictions
from evaluation.sharing import gather_rows, own_images

MATCHED_IOU = 0.5
"""Two segments of a class are the same above it, and no third one can be then"""


def panoptic_metrics(
    split: Split,
    predictions: Predictions,
    taxonomy: Taxonomy,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """PQ, SQ and RQ, PQ_things and PQ_stuff, and `per_class` {name: {PQ, SQ, RQ, segments}}.

    As the paper's own code has it: a found segment and a true one of its class are the same if more than
    half of what either covers is shared, pixels that are not known left out. PQ of a class is the sum of
    these shares over the same ones, plus half of the others of either side; totals are means over the
    classes that are there or were found. A segment that lies for more than half on pixels that are not
    known, or on a crowd of its class, is no false one. Images that could not be read count as missed;
    `missing_images` says how many. With an accelerator it is called on every rank, and each counts on
    some of the images.
    """
    num_classes = len(taxonomy.names)
    counts = _counts(split, predictions.objects, taxonomy, accelerator)
    shared, same, extra, missed = counts
    either = same + extra / 2 + missed / 2
    quality = np.where(either > 0, shared / np.maximum(either, 0.5), np.nan)
    segmentation = np.where(same > 0, shared / np.maximum(same, 1), np.where(either > 0, 0, np.nan))
    recognition = np.where(either > 0, same / np.maximum(either, 0.5), np.nan)
    things = np.array([c not in taxonomy.stuff for c in range(num_classes)])
    return {
        "PQ": _mean(quality),
        "SQ": _mean(segmentation),
        "RQ": _mean(recognition),
        "PQ_things": _mean(quality[things]),
        "PQ_stuff": _mean(quality[~things]),
        "missing_images": len(predictions.missing),
        "per_class": {
            name: {
                "PQ": _number(quality[c]),
                "SQ": _number(segmentation[c]),
                "RQ": _number(recognition[c]),
                "segments": int(same[c] + missed[c]),
            }
            for c, name in enumerate(taxonomy.names)
        },
    }


def _counts(
    split: Split, found: Objects, taxonomy: Taxonomy, accelerator: Accelerator | None
) -> np.ndarray:
    """Collective: called on every rank. Those of `_of_image` over all images, added in their order
    whoever counted them."""
    num_classes = len(taxonomy.names)
    found_by_image = found.by_image(len(split))
    rows = [np.zeros((0, 6))]
    for place in own_images(len(split), accelerator):
        record = split.records[place]
        size = (record.height, record.width)
        if record.unreadable and size == (1, 1):
            continue  # nobody knows how large it is
        own = _of_image(record.objects, found_by_image[place], size, taxonomy)
        there = np.flatnonzero(own.any(0))
        rows.append(np.column_stack([np.full(len(there), place), there, own[:, there].T]))
    everyone = gather_rows(accelerator, np.concatenate(rows))
    everyone = everyone[np.argsort(everyone[:, 0], kind="stable")]
    counts = np.zeros((num_classes, 4))
    np.add.at(counts, everyone[:, 1].astype(int), everyone[:, 2:])
    return counts.T


def _of_image(
    truth: Objects, found: Objects, size: tuple[int, int], taxonomy: Taxonomy
) -> np.ndarray:
    """float64 [4, C] by class: sum of IoU over the same segments, their number, false ones, missed ones."""
    num_classes = len(taxonomy.names)
    true, true_classes = segment_map(truth, size, taxonomy.stuff, taxonomy.background)
    other, classes = segment_map(found, size, taxonomy.stuff)
    rows, columns = len(true_classes) + 1, len(classes) + 1
    pairs = true.astype(np.int64) * columns + other
    both = np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)
    on_crowds = _on_crowds(truth, true == 0, size)
    crowd = np.zeros(size, dtype=bool)
    for pixels in on_crowds.values():
        crowd |= pixels
    void = np.bincount(other[(true == 0) & ~crowd], minlength=columns)
    known = both.sum(0) - void  # pixels of each found segment of which something is known
    either = both[1:].sum(1)[:, None] + known[None] - both[1:]
    iou = np.zeros((rows - 1, columns))
    np.divide(both[1:], either, out=iou, where=either > 0)
    iou = iou[:, 1:] * (true_classes[:, None] == classes[None])
    there = both[1:].sum(1) > 0  # a segment that others cover is none
    shown = both[:, 1:].sum(0) > 0
    place, match = np.nonzero(iou > MATCHED_IOU)
    counts = np.zeros((4, num_classes))
    np.add.at(counts[0], true_classes[place], iou[place, match])
    np.add.at(counts[1], true_classes[place], 1)
    excused = void[1:].copy()
    for kind, pixels in on_crowds.items():
        own = np.bincount(other[pixels], minlength=columns)[1:]
        excused += np.where(classes == kind, own, 0)
    unmatched = shown & ~(excused > both[:, 1:].sum(0) / 2)
    unmatched[match] = False
    np.add.at(counts[2], classes[unmatched], 1)
    missed = there.copy()
    missed[place] = False
    np.add.at(counts[3], true_classes[missed], 1)
    return counts


def _on_crowds(truth: Objects, free: np.ndarray, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """bool [H, W] by class: which of the free pixels lie on its crowds."""
    if truth.iscrowd is None or not truth.iscrowd.any():
        return {}
    crowds = truth.take(truth.iscrowd)
    return {
        kind: free & (label_map(crowds.take(crowds.classes == kind), size) > 0)
        for kind in np.unique(crowds.classes).tolist()
    }


def _mean(values: np.ndarray) -> float | None:
    """Of those that could be measured."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
