"""Samples to batches: pad, mask, and box targets relative to the unpadded image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch


@dataclass(frozen=True)
class Sample:
    """One image as the model will see it."""

    image: np.ndarray
    """uint8 [h, w, 3], resized and augmented"""
    boxes: np.ndarray
    """float64 [n, 4] xywh in pixels of `image`"""
    classes: np.ndarray
    """int64 [n]"""
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
    """One micro-batch."""

    pixel_values: torch.Tensor
    """uint8 [B, 3, H, W]; zero where padded"""
    pixel_mask: torch.Tensor
    """bool [B, H, W]; true on the image"""
    labels: list[dict[str, Any]]
    """Per image: class_labels int64 [n], boxes float32 [n, 4] cxcywh in [0, 1] of the unpadded
    image, image_id, index, orig_size (height, width), missing"""
    bad: list[str] = field(default_factory=list)
    """Images that could not be decoded, and why; another one is in the place of each"""

    def __getstate__(self) -> dict[str, Any]:
        """For the way from a worker: small tensors as arrays, since each tensor costs a handshake."""
        labels = [
            {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in label.items()}
            for label in self.labels
        ]
        return {**self.__dict__, "labels": labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.labels = [
            {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in label.items()}
            for label in self.labels
        ]

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader's pinning thread."""
        return Batch(
            self.pixel_values.pin_memory(),
            self.pixel_mask.pin_memory(),
            [_each_tensor(label, torch.Tensor.pin_memory) for label in self.labels],
            self.bad,
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copies from pinned memory do not block."""
        return Batch(
            self.pixel_values.to(device, non_blocking=True),
            self.pixel_mask.to(device, non_blocking=True),
            [
                _each_tensor(label, lambda t: t.to(device, non_blocking=True))
                for label in self.labels
            ],
            self.bad,
        )

    @property
    def num_boxes(self) -> list[int]:
        """Number of boxes of each image."""
        return [len(label["class_labels"]) for label in self.labels]

    @property
    def image_ids(self) -> list[int | str]:
        return [label["image_id"] for label in self.labels]


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
    labels = [_label(sample) for sample in samples]
    bad = [text for sample in samples for text in sample.bad]
    return Batch(torch.from_numpy(pixels), mask, labels, bad)


def relative_cxcywh(boxes: np.ndarray, height: int, width: int) -> torch.Tensor:
    """float32 [n, 4] cxcywh in [0, 1] of xywh pixel boxes, float64 [n, 4], in an image."""
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    relative = np.concatenate([centres, boxes[:, 2:]], axis=1) / [width, height, width, height]
    return torch.from_numpy(relative.astype(np.float32))


def _label(sample: Sample) -> dict[str, Any]:
    height, width = sample.image.shape[:2]
    return {
        "class_labels": torch.from_numpy(sample.classes.astype(np.int64)),
        "boxes": relative_cxcywh(sample.boxes, height, width),
        "image_id": sample.image_id,
        "index": sample.index,
        "orig_size": sample.orig_size,
        "missing": sample.missing,
    }


def _each_tensor(label: dict[str, Any], change: Any) -> dict[str, Any]:
    return {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in label.items()}
