"""COCO detection metrics, by faster-coco-eval."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from accelerate import Accelerator
from faster_coco_eval import COCO, COCOeval_faster

from data.coco_format import coco_content, coco_results
from data.collector import without_collector
from data.objects import Objects
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.predictions import Predictions
from evaluation.sharing import gather_rows, own_share

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
OF_A_CLASS = ("AP", "AP50")
"""Those that every class has, the first ones"""


def coco_metrics(
    split: Split,
    predictions: Predictions,
    taxonomy: Taxonomy,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """AP (IoU 0.5 to 0.95), AP50, AP75, AP by size, AR_100 and `per_class` {name: {AP, AP50}}.

    The boxes of images that could not be read count as missed; `missing_images` says how many.
    Sizes are areas in pixels of the decoded image (small < 32^2, large > 96^2). A number without
    any object to measure it on is None. Of predictions with masks these are the numbers of the masks,
    those of the boxes around them are called box_AP and so on, and flat_AP and so on those of what a
    pipeline makes of them, where no two masks overlap.

    Classes are evaluated one by one, each on the images that it is on: time and memory follow the
    objects, not images times classes. With an accelerator it is called on every rank, and each takes
    some of them.
    """
    objects, found = split.objects, predictions.objects
    counts = np.bincount(objects.classes[~objects.iscrowd], minlength=len(taxonomy.names))
    kind = "bbox" if found.masks is None else "segm"
    wanted = {"": (kind, found)}
    if kind == "segm":
        wanted["box_"] = ("bbox", found)
    if predictions.flat is not None:
        wanted["flat_"] = (kind, predictions.flat)
    with without_collector():
        sums = _sums(objects, list(wanted.values()), counts, split, accelerator)
    metrics: dict[str, Any] = {
        f"{prefix}{name}": _mean(*sums[part, :, number].sum(0))
        for part, prefix in enumerate(wanted)
        for number, name in enumerate(SUMMARY)
    }
    metrics["missing_images"] = len(predictions.missing)
    metrics["per_class"] = {
        name: {
            **{number: _mean(*sums[0, c, place]) for place, number in enumerate(OF_A_CLASS)},
            "boxes": int(counts[c]),
        }
        for c, name in enumerate(taxonomy.names)
    }
    return metrics


def _sums(
    truth: Objects,
    wanted: Sequence[tuple[str, Objects]],
    counts: np.ndarray,
    split: Split,
    accelerator: Accelerator | None,
) -> np.ndarray:
    """Collective: called on every rank. float64 [P, C, 7, 2]: sum and number of the measured values of
    every number of SUMMARY, by what is wanted (kind, found) and class.

    Each class is one rank's, so that nothing depends on how many there are.
    """
    present = np.flatnonzero(counts)
    true = _places(truth, len(counts))
    found = [_places(objects, len(counts)) for _, objects in wanted]
    tasks = [(part, c) for part in range(len(wanted)) for c in present.tolist()]
    costs = [len(true[c]) + len(found[part][c]) for part, c in tasks]
    rows = []
    for part, c in own_share(tasks, costs, accelerator):
        kind, objects = wanted[part]
        tables = _class_tables(truth.take(true[c]), objects.take(found[part][c]), split, kind)
        values = (tables[table][iou, ..., areas] for table, iou, areas in SUMMARY.values())
        measured = (own[own > -1] for own in values)
        rows.append(np.concatenate([[part, c], *((own.sum(), own.size) for own in measured)]))
    width = 2 + 2 * len(SUMMARY)
    sums = np.zeros((len(wanted), len(counts), len(SUMMARY), 2))
    for row in gather_rows(accelerator, np.array(rows).reshape(-1, width)):
        sums[int(row[0]), int(row[1])] = row[2:].reshape(-1, 2)
    return sums


def _places(objects: Objects, num_classes: int) -> list[np.ndarray]:
    """Where the objects of each class are, in the order in which they were."""
    order = np.argsort(objects.classes, kind="stable")
    ends = np.searchsorted(objects.classes[order], np.arange(num_classes + 1)).tolist()
    return [order[start:end] for start, end in pairwise(ends)]


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


def _mean(total: float, num: float) -> float | None:
    """Of all numbers that were measured."""
    return float(total / num) if num else None
