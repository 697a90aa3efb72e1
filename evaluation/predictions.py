"""Run the detector over a validation split, on any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from data.batch import Batch
from data.feed.loader import batches_of
from data.masks import Rle, mask_column
from data.objects import Objects
from evaluation.sharing import gather_rows
from model.memory import MemoryWatch
from model.trainable import Trainable
from settings.keys import EvalConfig
from settings.tasks import Labels

NOTHING = Objects(
    np.zeros((0, 4)), np.zeros(0, np.int64), image=np.zeros(0, np.int64), scores=np.zeros(0)
)
COLUMNS = {"image": 1, "boxes": 4, "scores": 1, "classes": 1}
"""What is gathered of predictions, and its width"""


@dataclass(frozen=True)
class Predictions:
    """What was found on a whole split."""

    objects: Objects
    """Boxes xywh in px of the decoded image, classes, scores, `image`, and masks (run lengths) if the
    model finds them; ordered by image and falling score"""
    missing: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [m]: images whose pixels could not be had; nothing is found on them"""
    flat: Objects | None = None
    """Beside masks: those of `pipeline("image-segmentation")` with subtask instance, of which no two
    overlap"""


def flat_threshold(labels: Labels, cfg: EvalConfig) -> float:
    """What is called so below, of a configuration."""
    return cfg.panoptic_threshold if labels == "segments" else cfg.score_threshold


@torch.no_grad()
def predict_split(
    accelerator: Accelerator,
    trainable: Trainable,
    loader: DataLoader[Batch],
    num_images: int,
    max_detections: int,
    flat_threshold: float,
    memory: MemoryWatch,
    stopped: Callable[[], bool] = lambda: False,
    shown: Callable[[int], object] = lambda num: None,
) -> Predictions | None:
    """Collective: called on every rank. Predictions for every image, the same on all ranks.

    The model runs in fp32, as a pipeline of transformers will run it, and is left in the mode it
    was in.

    Args:
        trainable: itself, not its DDP wrapper.
        loader: this rank's share of the batches of `evaluation_batches`.
        num_images: size of the split.
        flat_threshold: lowest score of what a pipeline is to give, where that differs, and of panoptic
            segments.
        stopped: asked before every batch, by all ranks together; True ends the evaluation.
        shown: told the number of images of every batch of this rank.

    Returns: None if it was stopped.

    Raises:
        UserError: naming the batch that the device's memory does not hold.
    """

    def predict(batch: Batch) -> tuple[Objects, Objects | None]:
        on_device = batch.to(accelerator.device)
        return trainable.predict_with_flat(on_device, max_detections, flat_threshold)

    was_training, in_parts = trainable.training, isinstance(trainable, FSDPModule)
    trainable.eval()
    tables: list[Objects] = []
    flat: list[Objects] = []
    seen: list[tuple[int, bool]] = []
    try:
        with batches_of(loader) as batches:
            for _ in range(_most_batches(accelerator, loader)):
                if stopped():
                    return None
                batch = next(batches, None)
                if batch is None:  # another rank has one more
                    if in_parts:  # and needs what this one has of the weights
                        predict(loader.collate_fn([loader.dataset[0]]))
                    continue
                with memory.holds(batch):
                    found, own_flat = predict(batch)
                tables.append(_in_split(found, batch))
                if own_flat is not None:
                    flat.append(_in_split(own_flat, batch))
                seen += zip(batch.indices, batch.missing, strict=True)
                shown(len(batch.indices))
    finally:
        trainable.train(was_training)
    covered = gather_rows(accelerator, np.array(seen, dtype=np.float64).reshape(-1, 2)).astype(int)
    assert sorted(covered[:, 0]) == list(range(num_images)), "each image is predicted once"
    missing = np.sort(covered[covered[:, 1] > 0, 0])
    objects = _gather_objects(accelerator, Objects.concat(tables))
    objects = _in_order(objects, missing)
    if objects.masks is None or trainable.finder.find_flat is None:
        return Predictions(objects, missing)
    flat_objects = _gather_objects(accelerator, Objects.concat(flat))
    return Predictions(objects, missing, _in_order(flat_objects, missing))


def _in_split(found: Objects, batch: Batch) -> Objects:
    """With places in the split for rows of the batch."""
    return replace(found, image=np.array(batch.indices)[found.image])


def _in_order(objects: Objects, missing: np.ndarray) -> Objects:
    """By image and falling score, without those of missing images."""
    objects = objects.take(~np.isin(objects.image, missing))
    return objects.take(np.lexsort((-objects.scores, objects.image)))


def _gather_objects(accelerator: Accelerator, own: Objects) -> Objects:
    """Collective: called on every rank. The objects of all ranks, one rank's after the other's."""
    own = own if own.image is not None else NOTHING
    rows = np.column_stack([own.columns()[name] for name in COLUMNS]).astype(np.float64)
    rows = gather_rows(accelerator, rows)
    ends = np.cumsum(list(COLUMNS.values()))
    parts = dict(zip(COLUMNS, np.split(rows, ends[:-1], axis=1), strict=True))
    return Objects(
        image=parts["image"][:, 0].astype(np.int64),
        boxes=parts["boxes"],
        scores=parts["scores"][:, 0],
        classes=parts["classes"][:, 0].astype(np.int64),
        masks=_gather_masks(accelerator, own.masks),
    )


def _gather_masks(accelerator: Accelerator, own: np.ndarray | None) -> np.ndarray | None:
    """Collective: called on every rank. The run lengths of all ranks; None if no rank has a column."""
    if not gather_rows(accelerator, np.array([[own is not None]], np.int64)).any():
        return None
    masks = [] if own is None else list(own)
    shapes = np.array([(*mask.size, len(mask.counts)) for mask in masks], np.int64).reshape(-1, 3)
    text = np.frombuffer(b"".join(mask.counts for mask in masks), np.uint8)
    shapes = gather_rows(accelerator, shapes)
    text = gather_rows(accelerator, text[:, None])[:, 0]
    ends = np.cumsum(shapes[:, 2])
    return mask_column(
        [
            Rle((height, width), text[end - length : end].tobytes())
            for (height, width, length), end in zip(shapes.tolist(), ends.tolist(), strict=True)
        ]
    )


def _most_batches(accelerator: Accelerator, loader: DataLoader[Batch]) -> int:
    """Collective: called on every rank. Batches of the rank that has most."""
    own = torch.tensor([len(loader)], device=accelerator.device)
    return int(accelerator.gather(own).max())
