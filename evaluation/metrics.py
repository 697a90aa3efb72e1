"""The metrics of each kind of labels."""

from typing import Any

from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.coco import coco_metrics
from evaluation.panoptic import panoptic_metrics
from evaluation.predictions import Predictions
from evaluation.regions import region_metrics
from settings.keys import Labels

TOTALS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100"),
    *("mIoU", "pixel_accuracy", "mean_accuracy"),
    *("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"),
)
"""Numbers of a whole split that people are shown, as far as they were measured"""


def measure(
    labels: Labels, split: Split, predictions: Predictions, taxonomy: Taxonomy
) -> dict[str, Any]:
    """Numbers by name, among them `missing_images`, and `per_class` {name: {number's name: value}}."""
    if labels == "regions":
        return region_metrics(split, predictions, taxonomy)
    if labels == "segments":
        return panoptic_metrics(split, predictions, taxonomy)
    return coco_metrics(split, predictions, taxonomy)
