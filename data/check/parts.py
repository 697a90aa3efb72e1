"""Figures of a split of which every pixel has a class or is ignored: how much of it is of which class."""

from dataclasses import dataclass, replace

import numpy as np

from data.check.statistics import Quantiles, quantiles
from data.dataset import Data
from data.objects import Objects
from data.record import Record
from data.regions import label_map, partition, regions_of, segment_map, segments_of
from data.schema import Split


@dataclass(frozen=True)
class ClassPixels:
    """What is of one class."""

    name: str
    share: float
    """Of all pixels of the split's images"""
    parts: int
    """Regions or segments"""
    images: int
    """Images that have at least one of them"""


@dataclass(frozen=True)
class PixelStatistics:
    """What the pixels of a split's images are, as training sees them before the resize."""

    unit: str
    """What parts are: regions or segments"""
    images: int
    images_without_labels: int
    """Of which every pixel is ignored"""
    parts: int
    crowd_parts: int
    """Segments of groups (iscrowd), whose pixels are ignored; not among `parts`"""
    classes: tuple[ClassPixels, ...]
    ignored_share: float
    """Of all pixels of the split's images"""
    ignored_images: int
    """Images that have ignored pixels"""
    part_share: Quantiles | None
    """Share of its image that one part covers"""
    parts_per_image: Quantiles | None
    image_width_px: Quantiles | None
    image_height_px: Quantiles | None


def parts_of(split: Split, data: Data) -> Objects:
    """The regions or segments of all images of a split, with image, class and area in px of the decoded image.

    Those of label maps are counted by their run lengths; masks of objects are drawn, since they overlap.
    """
    taxonomy = data.taxonomy
    stuff = taxonomy.stuff if data.labels == "segments" else None
    if not split.dense:
        tables = [
            partition(r.objects, (r.height, r.width), taxonomy.background, stuff)[1]
            for r in split.records
        ]
        return Objects.of_images(tables)
    given = replace(split.objects, masks=None)
    if stuff is not None:
        given = given.take(~given.iscrowd)
    single = np.zeros(len(given), np.int64)
    if stuff is not None:  # things are not united
        things = np.flatnonzero(~np.isin(given.classes, stuff))
        single[things] = things + 1
    rows = np.column_stack([given.image, given.classes, single])
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    areas = np.bincount(place.reshape(-1), weights=given.areas, minlength=len(first))
    return replace(given.take(first), areas=areas)


def drawn_parts(record: Record, data: Data) -> tuple[Objects, np.ndarray]:
    """The regions or segments of one image with masks, and which of its pixels are ignored, bool [H, W]."""
    size, taxonomy = (record.height, record.width), data.taxonomy
    if data.labels == "segments":
        numbers, classes = segment_map(record.objects, size, taxonomy.stuff, taxonomy.background)
        return segments_of(numbers, classes), numbers == 0
    labels = label_map(record.objects, size, taxonomy.background)
    return regions_of(labels), labels == 0


def part_shares(parts: Objects, split: Split) -> np.ndarray:
    """Share of its image that each part covers, float64 [n]."""
    return parts.areas / _image_areas(split)[parts.image]


def pixel_statistics(parts: Objects, split: Split, data: Data) -> PixelStatistics:
    """Figures of a split.

    Args:
        parts: those of `parts_of`.
    """
    names = data.taxonomy.names
    num, areas = len(names), _image_areas(split)
    total = float(areas.sum())
    per_image = np.bincount(parts.image, minlength=len(split))
    known = np.bincount(parts.image, weights=parts.areas, minlength=len(split))
    pixels = np.bincount(parts.classes, weights=parts.areas, minlength=num)
    counts = np.bincount(parts.classes, minlength=num)
    pairs = np.unique(np.stack([parts.image, parts.classes], axis=1), axis=0)
    images_of = np.bincount(pairs[:, 1], minlength=num)
    crowds = split.objects.iscrowd
    segments = data.labels == "segments"
    return PixelStatistics(
        unit=data.labels,
        images=len(split),
        images_without_labels=int((per_image == 0).sum()),
        parts=len(parts),
        crowd_parts=int(crowds.sum()) if segments and crowds is not None else 0,
        classes=tuple(
            ClassPixels(name, float(pixels[c]) / total, int(counts[c]), int(images_of[c]))
            for c, name in enumerate(names)
        ),
        ignored_share=(total - float(known.sum())) / total,
        ignored_images=int((known < areas).sum()),
        part_share=quantiles(part_shares(parts, split), 6),
        parts_per_image=quantiles(per_image),
        image_width_px=quantiles(split.table.sizes[:, 1]),
        image_height_px=quantiles(split.table.sizes[:, 0]),
    )


def _image_areas(split: Split) -> np.ndarray:
    return split.table.sizes.prod(axis=1).astype(np.float64)
