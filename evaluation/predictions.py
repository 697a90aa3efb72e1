"""Run the detector over a validation split, on any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from data.feed.collate import Batch
from data.feed.loader import batches_of
from model.normalization import Normalization

NO_THRESHOLD = -1.0
GATHER_ROWS = 65_536
"""Boxes per rank and gather: device memory does not grow with the validation split"""


@dataclass(frozen=True)
class Predictions:
    """Boxes of a whole split, ordered by image and falling score."""

    index: np.ndarray
    """int64 [n]: the image's place in its split"""
    boxes: np.ndarray
    """float64 [n, 4] xywh, px of the decoded image"""
    scores: np.ndarray
    """float64 [n]"""
    classes: np.ndarray
    """int64 [n]"""
    missing: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [m]: images whose pixels could not be had; nothing is found on them"""

    def of_image(self, index: int, threshold: float = 0.0) -> "Predictions":
        """Those of one image with at least `threshold`."""
        chosen = (self.index == index) & (self.scores >= threshold)
        return Predictions(
            self.index[chosen], self.boxes[chosen], self.scores[chosen], self.classes[chosen]
        )


@torch.no_grad()
def predict_split(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: Any,
    normalization: Normalization,
    loader: DataLoader[Batch],
    num_images: int,
    max_detections: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Predictions | None:
    """Collective: called on every rank. Predictions for every image, the same on all ranks.

    The model runs in fp32, as a pipeline of transformers will run it, and is left in the mode it
    was in.

    Args:
        model: the detector itself, not its DDP wrapper.
        loader: this rank's share of the batches of `evaluation_batches`.
        num_images: size of the split.
        stopped: asked before every batch, by all ranks together; True ends the evaluation.

    Returns: None if it was stopped.
    """
    was_training = model.training
    model.eval()
    rows, seen = [np.zeros((0, 7), np.float32)], []
    try:
        with batches_of(loader) as batches:
            for _ in range(_most_batches(accelerator, loader)):
                if stopped():
                    return None
                batch = next(batches, None)
                if batch is None:  # another rank has one more
                    continue
                rows.append(
                    _predict_batch(
                        accelerator, model, processor, normalization, batch, max_detections
                    )
                )
                seen += [(label["index"], label["missing"]) for label in batch.labels]
    finally:
        model.train(was_training)
    gathered = _gather(accelerator, np.concatenate(rows))
    covered = _gather(accelerator, np.array(seen, dtype=np.float32).reshape(-1, 2)).astype(int)
    assert sorted(covered[:, 0]) == list(range(num_images)), "each image is predicted once"
    missing = np.sort(covered[covered[:, 1] > 0, 0])
    gathered = gathered[~np.isin(gathered[:, 0], missing)]
    order = np.lexsort((-gathered[:, 5], gathered[:, 0]))
    gathered = gathered[order].astype(np.float64)
    boxes = np.concatenate([gathered[:, 1:3], gathered[:, 3:5] - gathered[:, 1:3]], axis=1)
    index, classes = gathered[:, 0].astype(np.int64), gathered[:, 6].astype(np.int64)
    return Predictions(index, boxes, gathered[:, 5], classes, missing)


def _most_batches(accelerator: Accelerator, loader: DataLoader[Batch]) -> int:
    """Collective: called on every rank. Batches of the rank that has most."""
    own = torch.tensor([len(loader)], device=accelerator.device)
    return int(accelerator.gather(own).max())


def _predict_batch(
    accelerator: Accelerator,
    model: PreTrainedModel,
    processor: Any,
    normalization: Normalization,
    batch: Batch,
    max_detections: int,
) -> np.ndarray:
    """float32 [n, 7]: image index, x1, y1, x2, y2, score, class."""
    batch = batch.to(accelerator.device)
    # The class's own forward: accelerate puts autocast into the instance's.
    outputs = type(model).forward(
        model,
        pixel_values=normalization(batch.pixel_values, batch.pixel_mask),
        pixel_mask=batch.pixel_mask,
    )
    sizes = torch.tensor([label["orig_size"] for label in batch.labels], device=accelerator.device)
    found = processor.post_process_object_detection(
        outputs, threshold=NO_THRESHOLD, target_sizes=sizes
    )
    rows = []
    for label, result in zip(batch.labels, found, strict=True):
        top = result["scores"].argsort(descending=True, stable=True)[:max_detections]
        columns = [
            torch.full_like(result["scores"], label["index"])[top, None],
            result["boxes"][top],
            result["scores"][top, None],
            result["labels"][top, None].to(result["scores"]),
        ]
        rows.append(torch.cat(columns, dim=1))
    return torch.cat(rows).cpu().numpy()


def _gather(accelerator: Accelerator, rows: np.ndarray) -> np.ndarray:
    """Collective: called on every rank. The rows of all ranks, whatever their numbers."""
    if accelerator.num_processes == 1:
        return rows
    counts = accelerator.gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    chunks = []
    for start in range(0, max(counts), GATHER_ROWS):
        own = torch.from_numpy(rows[start : start + GATHER_ROWS])
        padded = torch.zeros(GATHER_ROWS, rows.shape[1])
        padded[: len(own)] = own
        chunks.append(accelerator.gather(padded[None].to(accelerator.device)).cpu().numpy())
    parts = np.concatenate([np.zeros((len(counts), 0, rows.shape[1]), np.float32), *chunks], axis=1)
    return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])
