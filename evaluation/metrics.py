"""The metrics of each kind of labels."""

from typing import Any

from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions
from evaluation.regions import region_metrics
from settings.keys import Labels


def measure(
    labels: Labels, split: Split, predictions: Predictions, taxonomy: Taxonomy
) -> dict[str, Any]:
    """Numbers by name, among them `missing_images`, and `per_class` {name: {number's name: value}}."""
    if labels == "regions":
        return region_metrics(split, predictions, taxonomy)
    return coco_metrics(split, predictions, taxonomy)
