"""Samples to batches: pad, mask, and boxes relative to the unpadded image."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch

from data.batch import Batch, Sample
from data.boxes import from_centres, to_centres
from data.objects import Objects

UNUSED = ("areas", "iscrowd", "numbers", "scores")
"""Columns that no model gets"""


def collate(samples: Sequence[Sample], through_pipe: bool = False) -> Batch:
    """Pad to the samples' canvas, at the right and bottom."""
    height, width = samples[0].canvas
    pixels = np.zeros((len(samples), 3, height, width), np.uint8)
    mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        assert sample.canvas == samples[0].canvas
        h, w = sample.image.shape[:2]
        cv2.split(sample.image, [plane[:h, :w] for plane in pixels[row]])  # writes into `pixels`
        mask[row, :h, :w] = True
    objects = Objects.of_images([sample.objects for sample in samples])
    sides = np.array([sample.image.shape[1::-1] * 2 for sample in samples])[objects.image]
    boxes = relative(objects.boxes, sides)
    masks, ignored = _cells(samples)
    columns = replace(objects, boxes=boxes, masks=masks, **dict.fromkeys(UNUSED))
    return Batch(
        pixel_values=torch.from_numpy(pixels),
        pixel_mask=mask,
        objects=columns.each(torch.from_numpy),
        ignored=None if ignored is None else torch.from_numpy(ignored),
        num_objects=[len(sample.objects) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        indices=[sample.index for sample in samples],
        orig_sizes=[sample.orig_size for sample in samples],
        missing=[sample.missing for sample in samples],
        noise_keys=[sample.noise_key for sample in samples],
        bad=[text for sample in samples for text in sample.bad],
        maps=tuple(map(torch.stack, zip(*(sample.maps for sample in samples), strict=True))),
        through_pipe=through_pipe,
    )


def _cells(samples: Sequence[Sample]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Masks uint8 [n, H/4, W/4] of all objects, and what is ignored, uint8 [B, H/4, W/4]."""
    planes = [sample.planes for sample in samples if sample.planes is not None]
    if not planes:
        return None, None
    canvas = samples[0].canvas
    masks = [
        sample.planes.cells(len(sample.objects), canvas)
        for sample in samples
        if sample.planes is not None
    ]
    return np.concatenate(masks), np.stack([own.ignored_cells(canvas) for own in planes])


def relative(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """float32 cxcywh in [0, 1] of xywh boxes in pixels, float64 [n, 4].

    Args:
        sides: (width, height, width, height) of each box's image, px, [n, 4].
    """
    return (to_centres(boxes) / sides).astype(np.float32)


def absolute(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """float64 xywh in pixels of cxcywh in [0, 1]; the way back of `relative`."""
    return from_centres(boxes.astype(np.float64) * sides)
