"""Figures of a split: how many images and boxes of which class and size."""

from dataclasses import dataclass

import numpy as np

from data.canvas import resized_sizes
from data.schema import Split
from data.taxonomy import Taxonomy
from settings.keys import ImageSizeConfig

SMALL_PX2, LARGE_PX2 = 32**2, 96**2
"""COCO's limits between small, medium and large boxes, px^2"""


@dataclass(frozen=True)
class Quantiles:
    """Seven numbers of a distribution."""

    least: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    most: float


@dataclass(frozen=True)
class ClassCount:
    """Boxes of one class."""

    name: str
    boxes: int
    images: int
    """Images that have at least one of them"""


@dataclass(frozen=True)
class SplitStatistics:
    """What a split holds after its boxes have been cleaned; groups (iscrowd) are counted apart."""

    images: int
    images_without_boxes: int
    boxes: int
    crowd_boxes: int
    classes: tuple[ClassCount, ...]
    small_boxes: int
    """Boxes below 32^2 px^2 in the resized image, as COCO's AP_small has them"""
    medium_boxes: int
    large_boxes: int
    """Boxes of 96^2 px^2 and more in the resized image"""
    box_side_px: Quantiles | None
    """Square root of the area in the resized image"""
    box_shortest_px: Quantiles | None
    """Shorter side in the resized image"""
    box_aspect: Quantiles | None
    """Width / height"""
    boxes_per_image: Quantiles | None
    image_width_px: Quantiles | None
    """As stored, before the resize"""
    image_height_px: Quantiles | None


def split_statistics(split: Split, taxonomy: Taxonomy, size: ImageSizeConfig) -> SplitStatistics:
    """Figures of a split whose categories are class indices."""
    boxes = resized_boxes(split, size)
    everything = split.objects
    objects = everything.take(~everything.iscrowd)
    counts = np.bincount(objects.image, minlength=len(split))
    num_classes = len(taxonomy.names)
    per_class = np.bincount(objects.classes, minlength=num_classes)
    pairs = np.unique(np.stack([objects.image, objects.classes], axis=1), axis=0)
    images_of = np.bincount(pairs[:, 1], minlength=num_classes)
    area = boxes[:, 0] * boxes[:, 1]
    small, large = int((area < SMALL_PX2).sum()), int((area >= LARGE_PX2).sum())
    return SplitStatistics(
        images=len(split),
        images_without_boxes=int((counts == 0).sum()),
        boxes=len(boxes),
        crowd_boxes=int(everything.iscrowd.sum()),
        classes=tuple(
            ClassCount(name, int(per_class[c]), int(images_of[c]))
            for c, name in enumerate(taxonomy.names)
        ),
        small_boxes=small,
        medium_boxes=len(boxes) - small - large,
        large_boxes=large,
        box_side_px=quantiles(np.sqrt(area)),
        box_shortest_px=quantiles(boxes[:, :2].min(axis=1)),
        box_aspect=quantiles(boxes[:, 2]),
        boxes_per_image=quantiles(counts),
        image_width_px=quantiles(split.table.sizes[:, 1]),
        image_height_px=quantiles(split.table.sizes[:, 0]),
    )


def resized_boxes(split: Split, size: ImageSizeConfig) -> np.ndarray:
    """float64 [n, 3]: width and height, px, of all boxes in the resized images, and the ratio of
    width to height in the stored image."""
    objects = split.objects
    objects = objects.take(~objects.iscrowd)
    stored = split.table.sizes
    scale = (resized_sizes(stored, size) / stored)[:, ::-1]
    sides = objects.boxes[:, 2:]
    return np.column_stack([sides * scale[objects.image], sides[:, 0] / sides[:, 1]])


def quantiles(values: np.ndarray, digits: int = 3) -> Quantiles | None:
    """Of numbers [n], rounded; None if there are none."""
    if not len(values):
        return None
    points = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    return Quantiles(*(round(float(point), digits) for point in points))
