"""Metrics of semantic segmentation, from one table of counted pixels."""

from typing import Any

import numpy as np
from accelerate import Accelerator

from data.objects import Objects
from data.regions import label_map
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.predictions import Predictions
from evaluation.sharing import gather_rows, own_images


def region_metrics(
    split: Split,
    predictions: Predictions,
    taxonomy: Taxonomy,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """mIoU, pixel_accuracy, mean_accuracy, and `per_class` {name: {IoU, accuracy, pixels}}.

    Pixels are counted in the decoded images, over the whole split; those whose class is not known take no
    part. IoU is of all pixels of a class at once, and its mean is over the classes that are there or were
    predicted; that of accuracy over those that are there (as mmsegmentation has both). Images that could
    not be read count as missed; `missing_images` says how many. With an accelerator it is
    called on every rank, and each counts on some of the images.
    """
    pixels = confusion(split, predictions.objects, taxonomy, accelerator)
    num_classes = len(taxonomy.names)
    right = np.diag(pixels)
    true, found = pixels.sum(1), pixels[:, :num_classes].sum(0)
    either = true + found - right
    iou, accuracy = _ratios(right, either), _ratios(right, true)
    return {
        "mIoU": _mean(iou),
        "pixel_accuracy": _ratio(right.sum(), true.sum()),
        "mean_accuracy": _mean(accuracy),
        "missing_images": len(predictions.missing),
        "per_class": {
            name: {"IoU": iou[c], "accuracy": accuracy[c], "pixels": int(true[c])}
            for c, name in enumerate(taxonomy.names)
        },
    }


def confusion(
    split: Split, found: Objects, taxonomy: Taxonomy, accelerator: Accelerator | None = None
) -> np.ndarray:
    """Collective: called on every rank. int64 [C, C + 1]: pixels of true class c for which class d was
    predicted; in the last column those for which none was."""
    num_classes = len(taxonomy.names)
    pixels = np.zeros((num_classes, num_classes + 1), np.int64)
    found_by_image = found.by_image(len(split))
    for place in own_images(len(split), accelerator):
        record, own = split.records[place], found_by_image[place]
        size = (record.height, record.width)
        if record.unreadable and size == (1, 1):
            continue  # nobody knows how large it is
        truth = label_map(record.objects, size, taxonomy.background).astype(np.int64)
        predicted = label_map(own, size).astype(np.int64)
        known = truth > 0
        column = np.where(predicted > 0, predicted - 1, num_classes)[known]
        pairs = (truth[known] - 1) * (num_classes + 1) + column
        pixels += np.bincount(pairs, minlength=pixels.size).reshape(pixels.shape)
    cells = gather_rows(accelerator, pixels.reshape(-1, 1))
    return cells.reshape(-1, *pixels.shape).sum(0)


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [_ratio(part, whole) for part, whole in zip(parts, wholes, strict=True)]


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _mean(values: list[float | None]) -> float | None:
    """Of those that could be measured."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
