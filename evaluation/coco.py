"""COCO detection metrics, by faster-coco-eval."""

import math
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from data.schema import Split, Taxonomy
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
        truth, truth.loadRes(result_list(predictions)), "bbox", print_function=lambda *_: None
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    metrics: dict[str, Any] = {k: _number(evaluator.stats[place]) for k, place in SUMMARY.items()}
    metrics["missing_images"] = len(predictions.missing)
    precision = evaluator.eval["precision"]  # [IoU, recall, class, area range, max detections]
    metrics["per_class"] = {
        name: {
            "AP": _mean(precision[:, :, c, 0, -1]),
            "AP50": _mean(precision[IOU_50, :, c, 0, -1]),
            "boxes": int(sum((r.categories[~r.iscrowd] == c).sum() for r in split.records)),
        }
        for c, name in enumerate(taxonomy.names)
    }
    return metrics


def ground_truth(split: Split, taxonomy: Taxonomy) -> dict[str, Any]:
    """A split as COCO content; image ids are places in the split, category ids class indices.

    Annotation ids start at 1: the COCO evaluation takes a match with id 0 for no match.
    """
    annotations = []
    for index, record in enumerate(split.records):
        for box, category, area, crowd in zip(
            record.boxes, record.categories, record.areas, record.iscrowd, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": int(category),
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    return {
        "images": [
            {"id": i, "width": r.width, "height": r.height} for i, r in enumerate(split.records)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(taxonomy.names)],
        "annotations": annotations,
    }


def result_list(predictions: Predictions) -> list[dict[str, Any]]:
    """Predictions in COCO's results format, with the ids of `ground_truth`."""
    return [
        {"image_id": int(i), "category_id": int(c), "bbox": box.tolist(), "score": float(score)}
        for i, c, box, score in zip(
            predictions.index,
            predictions.classes,
            predictions.boxes,
            predictions.scores,
            strict=True,
        )
    ]


def _mean(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


def _number(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)
