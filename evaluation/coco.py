"""COCO detection metrics, by faster-coco-eval."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from data.coco_format import coco_content, coco_results
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.predictions import Predictions

SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR_100": 8}
"""Places in the twelve standard numbers of COCO"""
IOU_50 = 0
"""Place of IoU 0.5 among the ten thresholds"""


def coco_metrics(split: Split, predictions: Predictions, taxonomy: Taxonomy) -> dict[str, Any]:
    """AP (IoU 0.5 to 0.95), AP50, AP75, AP by size, AR_100 and `per_class` {name: {AP, AP50}}.

    The boxes of images that could not be read count as missed; `missing_images` says how many.
    Sizes are areas in pixels of the decoded image (small < 32^2, large > 96^2). A number without
    any object to measure it on is None.
    """
    truth = COCO(ground_truth(split, taxonomy))
    evaluator = COCOeval_faster(
        truth,
        truth.loadRes(result_list(predictions, split, taxonomy)),
        "bbox",
        print_function=lambda *_: None,
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    metrics: dict[str, Any] = {k: _number(evaluator.stats[place]) for k, place in SUMMARY.items()}
    metrics["missing_images"] = len(predictions.missing)
    objects = split.objects
    counts = np.bincount(objects.classes[~objects.iscrowd], minlength=len(taxonomy.names))
    precision = evaluator.eval["precision"]  # [IoU, recall, class, area range, max detections]
    metrics["per_class"] = {
        name: {
            "AP": _mean(precision[:, :, c, 0, -1]),
            "AP50": _mean(precision[IOU_50, :, c, 0, -1]),
            "boxes": int(counts[c]),
        }
        for c, name in enumerate(taxonomy.names)
    }
    return metrics


def ground_truth(split: Split, taxonomy: Taxonomy) -> dict[str, Any]:
    """A split as COCO content; image ids are places in the split, category ids class indices."""
    images = [{"id": i, "width": r.width, "height": r.height} for i, r in enumerate(split.records)]
    return coco_content(images, split.objects, _by_index(taxonomy))


def result_list(predictions: Predictions, split: Split, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Predictions in COCO's results format, with the ids of `ground_truth`."""
    return coco_results(predictions.objects, range(len(split)), _by_index(taxonomy).category_ids)


def _by_index(taxonomy: Taxonomy) -> Taxonomy:
    """The classes with their indices for category ids."""
    return replace(taxonomy, category_ids=tuple(range(len(taxonomy.names))))


def _mean(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


def _number(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)
