"""COCO detection metrics, by faster-coco-eval."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from data.coco_format import coco_content, coco_results
from data.objects import Objects
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.predictions import Predictions

MAX_DETECTIONS = 100
"""Of an image, COCO looks at the best only"""
SUMMARY: dict[str, tuple[str, Any, int]] = {
    "AP": ("precision", slice(None), 0),
    "AP50": ("precision", 0, 0),
    "AP75": ("precision", 5, 0),
    "AP_small": ("precision", slice(None), 1),
    "AP_medium": ("precision", slice(None), 2),
    "AP_large": ("precision", slice(None), 3),
    "AR_100": ("recall", slice(None), 0),
}
"""The numbers of COCO: their table, and the place of the IoU threshold and of the range of areas in it"""


def coco_metrics(split: Split, predictions: Predictions, taxonomy: Taxonomy) -> dict[str, Any]:
    """AP (IoU 0.5 to 0.95), AP50, AP75, AP by size, AR_100 and `per_class` {name: {AP, AP50}}.

    The boxes of images that could not be read count as missed; `missing_images` says how many.
    Sizes are areas in pixels of the decoded image (small < 32^2, large > 96^2). A number without
    any object to measure it on is None. Of predictions with masks these are the numbers of the masks,
    those of the boxes around them are called box_AP and so on, and flat_AP and so on those of what a
    pipeline makes of them, where no two masks overlap.

    Classes are evaluated one by one, each on the images that it is on: time and memory follow the
    objects, not images times classes.
    """
    objects = split.objects
    counts = np.bincount(objects.classes[~objects.iscrowd], minlength=len(taxonomy.names))
    truth = _by_class(objects, taxonomy)
    kinds = ("bbox",) if predictions.objects.masks is None else ("segm", "bbox")
    found = _by_class(predictions.objects, taxonomy)
    tables = _tables(truth, found, counts, split, kinds[0])
    metrics = _summary(tables, "")
    for kind in kinds[1:]:
        metrics |= _summary(_tables(truth, found, counts, split, kind), "box_")
    if predictions.flat is not None:
        found = _by_class(predictions.flat, taxonomy)
        metrics |= _summary(_tables(truth, found, counts, split, kinds[0]), "flat_")
    metrics["missing_images"] = len(predictions.missing)
    metrics["per_class"] = {
        name: {
            "AP": _mean([tables[c]["precision"][..., 0]] if c in tables else []),
            "AP50": _mean([tables[c]["precision"][0, :, 0]] if c in tables else []),
            "boxes": int(counts[c]),
        }
        for c, name in enumerate(taxonomy.names)
    }
    return metrics


def _tables(
    truth: Sequence[Objects], found: Sequence[Objects], counts: np.ndarray, split: Split, kind: str
) -> dict[int, dict[str, np.ndarray]]:
    """Those of `_class_tables` by class, for the classes that are there."""
    present = np.flatnonzero(counts).tolist()
    return {c: _class_tables(truth[c], found[c], split, kind) for c in present}


def _summary(tables: Mapping[int, Mapping[str, np.ndarray]], prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}{name}": _mean([own[table][iou, ..., areas] for own in tables.values()])
        for name, (table, iou, areas) in SUMMARY.items()
    }


def _by_class(objects: Objects, taxonomy: Taxonomy) -> list[Objects]:
    """The objects of each class, in the order in which they were."""
    order = np.argsort(objects.classes, kind="stable")
    ends = np.searchsorted(objects.classes[order], np.arange(len(taxonomy.names) + 1)).tolist()
    return [objects.take(order[start:end]) for start, end in pairwise(ends)]


def _class_tables(truth: Objects, found: Objects, split: Split, kind: str) -> dict[str, np.ndarray]:
    """precision [10 IoU thresholds, 101 recalls, 4 ranges of areas] and recall [10, 4] of one class,
    -1 where there is nothing to measure.

    Args:
        kind: bbox or segm.
    """
    if kind == "bbox":
        truth, found = replace(truth, masks=None), replace(found, masks=None)
    places, image = np.unique(np.concatenate([truth.image, found.image]), return_inverse=True)
    sizes = split.table.sizes[places].tolist()
    images = [
        {"id": i, "width": width, "height": height} for i, (height, width) in enumerate(sizes)
    ]
    truth = replace(truth, image=image[: len(truth)], classes=np.zeros(len(truth), np.int64))
    found = replace(found, image=image[len(truth) :], classes=np.zeros(len(found), np.int64))
    content = COCO(coco_content(images, truth, Taxonomy(("",), (0,))))
    rows = coco_results(found, range(len(images)), (0,))
    if kind == "segm":
        for row in rows:
            del row["bbox"]  # or its area would count as the mask's
    results = content.loadRes(rows)
    evaluator = COCOeval_faster(content, results, kind, print_function=lambda *_: None)
    evaluator.params.maxDets = [MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    return {"precision": precision[:, :, 0, :, 0], "recall": recall[:, 0, :, 0]}


def _mean(tables: list[np.ndarray]) -> float | None:
    """Of all numbers that were measured."""
    values = np.concatenate([np.zeros(0), *(table.ravel() for table in tables)])
    values = values[values > -1]
    return float(values.mean()) if values.size else None
