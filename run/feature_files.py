"""The files of the feature cache: which there are, and how one is made."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from data.batch import Batch, Sample
from data.feed.collate import collate
from data.feed.features import FeatureStore
from data.feed.loader import EvalDataset, TrainDataset, batches_of, start_worker
from data.feed.sampler import SampleRef
from data.feed.worker_memory import workers_short
from data.schema import Split
from errors import UserError
from model.build import Detector
from run.progress import Progress
from settings.keys import Config

AT_ONCE = 8
"""Images of a forward pass; always the same, since rounding depends on it"""
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Part:
    """What is stored of one split."""

    store: FeatureStore
    split: Split
    canvas: tuple[int, int]
    dataset: TrainDataset | EvalDataset
    made_from: dict[str, Any]
    """Beside the images"""

    @property
    def training(self) -> bool:
        """Whether its images are augmented."""
        return isinstance(self.dataset, TrainDataset)

    def sample(self, image: int, view: int) -> Sample | str:
        """An image as it is given to the backbone, or why it cannot be."""
        try:
            if isinstance(self.dataset, EvalDataset):
                sample = self.dataset[image]
                return "it cannot be decoded" if sample.missing else sample
            ref = SampleRef(image, view, self.canvas)
            sample = self.dataset.view(image, view, ref)
        except UserError as error:
            return str(error)
        without = self.dataset.view(image, view, ref, blank=True)
        if not _same_labels(sample, without):
            raise UserError(
                f"data.cache_features: what data.augment does to the labels of {self.split.records[image].where} "
                "depends on its pixels; set it 0"
            )
        return sample


Place = tuple[Part, int, int]
"""A file: of which split, view, shard"""


def _same_labels(one: Sample, other: Sample) -> bool:
    return (
        one.image.shape == other.image.shape
        and np.array_equal(one.objects.boxes, other.objects.boxes)
        and np.array_equal(one.objects.classes, other.objects.classes)
        and (
            one.planes is None
            or other.planes is None
            or np.array_equal(one.planes.ids, other.planes.ids)
        )
    )


def places(part: Part) -> list[Place]:
    """All files of a split."""
    store = part.store
    shards = range(len(store.digests))
    return [(part, view, shard) for view in range(store.views) for shard in shards]


def is_missing(part: Part, view: int, shard: int) -> bool:
    """Whether a file is not there, or not whole, or lacks an image that can be read now."""
    failed = part.store.failed_images(view, shard)
    return failed is None or any(isinstance(part.sample(image, view), Sample) for image in failed)


Made = tuple[Batch | None, list[str]]
"""Those images that can be had, and why others cannot"""


class Images(Dataset):
    """Images of files that are to be made, in order; one that cannot be had is the text why."""

    def __init__(self, missing: Sequence[Place]):
        self.missing = missing

    def __getitem__(self, place: tuple[int, int]) -> Sample | str:
        part, view, _ = self.missing[place[0]]
        sample = part.sample(place[1], view)
        return sample if isinstance(sample, str) else replace(sample, planes=None)


def _together(items: Sequence[Sample | str]) -> Made:
    samples = [sample for sample in items if isinstance(sample, Sample)]
    failures = [sample if isinstance(sample, str) else "" for sample in items]
    return collate(samples) if samples else None, failures


def build(
    cfg: Config,
    accelerator: Accelerator,
    detector: Detector,
    missing: Sequence[Place],
) -> None:
    """Make these files, on this rank."""
    if not missing:
        return
    largest = max((part.canvas for part, _, _ in missing), key=math.prod)
    short = workers_short(largest, AT_ONCE, cfg.data.num_workers)
    num_workers = 0 if short else cfg.data.num_workers
    batches = [
        [(number, image) for image in images[start : start + AT_ONCE]]
        for number, (part, _, shard) in enumerate(missing)
        for images in [part.store.images_of(shard)]
        for start in range(0, len(images), AT_ONCE)
    ]
    loader: DataLoader[Made] = DataLoader(
        Images(missing),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_together,
        worker_init_fn=start_worker,
    )
    total = sum(map(len, batches))
    bar = Progress(total, "features", "images", "stored", accelerator.is_main_process)
    try:
        with bar, batches_of(loader) as results:
            for part, view, shard in missing:
                _write(cfg, detector, part, view, shard, results, accelerator.device, bar)
    except SystemExit:  # at a signal
        if accelerator.is_main_process:
            folder = missing[0][0].store.folder.parent
            print(f"features stored so far stay in {folder}; the next start goes on with them")
        raise


def _write(
    cfg: Config,
    detector: Detector,
    part: Part,
    view: int,
    shard: int,
    results: Iterator[Made],
    device: torch.device,
    bar: Progress,
) -> None:
    images = part.store.images_of(shard)
    columns: list[torch.Tensor] = []
    failures: list[str] = []
    while len(failures) < len(images):
        batch, failed = next(results)
        rows = [len(failures) + row for row, text in enumerate(failed) if not text]
        if batch is not None:
            maps = maps_of(cfg, detector, batch, device, part.training)
            for number, found in enumerate(maps):
                if number == len(columns):
                    columns.append(torch.zeros(len(images), *found.shape[1:], dtype=found.dtype))
                columns[number][rows] = found
        failures += failed
        bar.update(len(failed))
    if not columns:  # not one image of them can be read
        with torch.no_grad():
            blank = torch.zeros(1, 3, *part.canvas, device=device)
            maps = detector.backbone_module(blank).feature_maps
        dtype = DTYPES[cfg.data.cache_precision]
        columns = [torch.zeros(len(images), *found.shape[1:], dtype=dtype) for found in maps]
    try:
        if is_missing(part, view, shard):  # another job may have been faster, and reads it
            part.store.write(view, shard, columns, failures)
    except OSError as error:
        raise UserError(
            f"data.cache_features: {part.store.folder} cannot be written: {error.strerror}; make room, or set "
            "data.cache_folder"
        ) from error


@torch.no_grad()
def maps_of(
    cfg: Config, detector: Detector, batch: Batch, device: torch.device, training: bool
) -> list[torch.Tensor]:
    """What the backbone makes of a batch, as it is stored.

    Args:
        training: in the precision of training.

    Raises:
        UserError: for values that the stored precision does not hold.
    """
    batch = batch.to(device)
    trainable = detector.trainable
    dtype = DTYPES[cfg.data.cache_precision]
    mixed = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(cfg.train.precision)
    with torch.autocast(device.type, mixed, enabled=training and mixed is not None):
        pixels = trainable.normalization(batch.pixel_values, batch.pixel_mask)
        maps = detector.backbone_module(pixels.to(trainable.model.dtype)).feature_maps
    stored = [found.to(dtype).cpu() for found in maps]
    if not all(bool(torch.isfinite(found).all()) for found in stored):
        raise UserError(
            f"data.cache_precision {cfg.data.cache_precision}, train.precision {cfg.train.precision}: do not hold all values "
            "of this backbone's maps; set data.cache_precision fp32, and train.precision bf16 or no"
        )
    return stored
