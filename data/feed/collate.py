"""Samples to batches: pad, mask, and boxes relative to the unpadded image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch

from data.boxes import from_centres, to_centres
from data.objects import Objects

UNUSED = ("areas", "iscrowd", "numbers", "scores")
"""Columns that no model gets"""


@dataclass(frozen=True)
class Sample:
    """One image as the model will see it."""

    image: np.ndarray
    """uint8 [h, w, 3], resized and augmented"""
    objects: Objects
    """What is on it; boxes xywh in pixels of `image`"""
    image_id: int | str
    index: int
    """Place in its split"""
    orig_size: tuple[int, int]
    """(height, width) of the decoded image, px"""
    canvas: tuple[int, int]
    """(height, width) to pad to, px"""
    bad: tuple[str, ...] = ()
    """What was wrong with the images that this one stands in for"""
    missing: bool = False
    """Its pixels cannot be had, and are blank"""


@dataclass
class Batch:
    """One micro-batch of B images."""

    pixel_values: torch.Tensor
    """uint8 [B, 3, H, W]; zero where padded"""
    pixel_mask: torch.Tensor
    """bool [B, H, W]; true on the image"""
    objects: Objects
    """Those of all images, one after the other, as tensors; boxes float32 cxcywh in [0, 1] of the
    unpadded image, `image` the row of the batch"""
    num_objects: list[int]
    """Of each image"""
    image_ids: list[int | str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Place of each image in its split"""
    orig_sizes: list[tuple[int, int]] = field(default_factory=list)
    """(height, width) of each decoded image, px"""
    missing: list[bool] = field(default_factory=list)
    """Whether an image's pixels cannot be had"""
    bad: list[str] = field(default_factory=list)
    """Images that could not be decoded, and why; another one is in the place of each"""

    def __getstate__(self) -> dict[str, Any]:
        """For the way from a worker: small tensors as arrays, since each tensor costs a handshake."""
        return {**self.__dict__, "objects": self.objects.each(torch.Tensor.numpy)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.objects = self.objects.each(torch.from_numpy)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader's pinning thread."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copies from pinned memory do not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        pixels, mask = change(self.pixel_values), change(self.pixel_mask)
        objects = self.objects.each(change)
        return replace(self, pixel_values=pixels, pixel_mask=mask, objects=objects)


def collate(samples: Sequence[Sample]) -> Batch:
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
    return Batch(
        pixel_values=torch.from_numpy(pixels),
        pixel_mask=mask,
        objects=replace(objects, boxes=boxes, **dict.fromkeys(UNUSED)).each(torch.from_numpy),
        num_objects=[len(sample.objects) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        indices=[sample.index for sample in samples],
        orig_sizes=[sample.orig_size for sample in samples],
        missing=[sample.missing for sample in samples],
        bad=[text for sample in samples for text in sample.bad],
    )


def relative(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """float32 cxcywh in [0, 1] of xywh boxes in pixels, float64 [n, 4].

    Args:
        sides: (width, height, width, height) of each box's image, px, [n, 4].
    """
    return (to_centres(boxes) / sides).astype(np.float32)


def absolute(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """float64 xywh in pixels of cxcywh in [0, 1]; the way back of `relative`."""
    return from_centres(boxes.astype(np.float64) * sides)
