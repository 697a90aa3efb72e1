"""The metrics of each kind of labels."""

from typing import Any

from accelerate import Accelerator

from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.coco import coco_metrics
from evaluation.panoptic import panoptic_metrics
from evaluation.predictions import Predictions
from evaluation.regions import region_metrics
from settings.tasks import Labels

TOTALS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100"),
    *("mIoU", "pixel_accuracy", "mean_accuracy"),
    *("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"),
)
"""Numbers of a whole split that people are shown, as far as they were measured"""
NEXT_TO_NOTHING = 0.01
"""Metric that decides which evaluation is the best, below which a model is of no use yet"""


def measure(
    labels: Labels,
    split: Split,
    predictions: Predictions,
    taxonomy: Taxonomy,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Collective: called on every rank, with the same predictions, of which each measures a share; or by
    one process without an accelerator.

    Returns: numbers by name, among them `missing_images`, and `per_class` {name: {number's name: value}}."""
    if labels == "regions":
        return region_metrics(split, predictions, taxonomy, accelerator)
    if labels == "segments":
        return panoptic_metrics(split, predictions, taxonomy, accelerator)
    return coco_metrics(split, predictions, taxonomy, accelerator)
