"""What fits into memory: the largest micro-batch that training can meet, tried before the first step.

Nothing of the trial stays: gradients are dropped, batch-norm statistics and random states put back, so that a run is
bit-equal to one without it. On CUDA it is always made, on a CPU (by resident memory) for micro_batch_size auto.
"""

import contextlib
import gc
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from data.batch import Batch
from data.dataset import Data
from data.masks import CELL_PIXELS, CELL_PX
from data.objects import Objects
from errors import UserError
from model.build import Detector
from model.memory import is_out_of_memory
from run.feature_cache import Features
from run.memory_room import can_measure, limit_bytes, peak_bytes, restart_peak
from settings.checks import micro_batch_size
from settings.keys import AUTO, Config
from training.counts import any_rank

SECOND_SIZES = (4, 2)
"""Images that are tried beside one, until some fit: more are measured better"""


@dataclass(frozen=True)
class Memory:
    """What the trial has found, the same on every rank."""

    micro_batch_size: int
    peak_bytes: int
    """That the worst micro-batch of this size takes on one process, with all that is there besides"""
    limit_bytes: int
    """What a process may take, with a margin left"""
    fits: int
    """Images of the largest micro-batch that would fit: by a straight line through two sizes"""
    canvas: tuple[int, int]
    """(height, width), px, of the largest that a step can have"""
    objects: int
    """Most that an image has"""
    chosen: bool
    """Whether the size was left to the trial"""

    def __str__(self) -> str:
        height, width = self.canvas
        by = "train.micro_batch_size auto: " if self.chosen else ""
        text = (
            f"{by}{self.micro_batch_size} image(s) of {width} x {height} px with {self.objects} object(s) each take "
            f"{self.peak_bytes / 1e9:.2f} GB of the {self.limit_bytes / 1e9:.2f} GB that a process may take; "
            f"{self.fits} would fit"
        )
        return text if self.fits >= self.micro_batch_size else f"WARNING: {text}"


class Trial:
    """Forward and backward of the worst micro-batch of any size, on one rank."""

    def __init__(
        self,
        cfg: Config,
        accelerator: Accelerator,
        data: Data,
        detector: Detector,
        features: Features | None,
    ):
        self.accelerator, self.device = accelerator, accelerator.device
        self.trainable = detector.trainable.to(self.device)
        self.canvas = detector.rule.largest(data.train.table.sizes)
        self.objects = most_objects(data)
        self.num_classes = len(data.taxonomy.names)
        self.has_masks = data.labels != "boxes"
        self.maps = () if features is None else features.train.maps(0, 0)
        weights = [p for p in self.trainable.parameters() if p.requires_grad]
        copies = 2 + (cfg.train.ema_decay is not None) + (accelerator.num_processes > 1)
        # What comes only with the first step: two moments of AdamW, the average, DDP's buckets.
        self.later_bytes = copies * sum(p.numel() * p.element_size() for p in weights)

    def peak(self, size: int) -> int | None:
        """Peak memory of `size` images, bytes, with what the first step adds; None if it does not fit."""
        gc.collect()
        restart_peak(self.device)
        if not self._step(size):
            return None
        return peak_bytes(self.device) + self.later_bytes

    def _step(self, size: int) -> bool:
        try:
            batch = self.worst_batch(size).to(self.device)
            with self.accelerator.autocast():
                losses = self.trainable(batch, self.trainable.counts(batch).alone)
            losses.total.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def worst_batch(self, size: int) -> Batch:
        """Images of the largest canvas with the most objects on each."""
        height, width = self.canvas
        number = size * self.objects
        cells = (number, height // CELL_PX, width // CELL_PX)
        masks = torch.full(cells, CELL_PIXELS, dtype=torch.uint8) if self.has_masks else None
        return Batch(
            pixel_values=torch.zeros(size, 3, height, width, dtype=torch.uint8),
            pixel_mask=torch.ones(size, height, width, dtype=torch.bool),
            objects=Objects(
                boxes=torch.full((number, 4), 0.5),
                classes=torch.arange(self.objects).remainder(self.num_classes).repeat(size),
                image=torch.arange(size).repeat_interleave(self.objects),
                masks=masks,
            ),
            num_objects=[self.objects] * size,
            orig_sizes=[self.canvas] * size,
            noise_keys=list(range(size)),
            ignored=torch.zeros(size, *cells[1:], dtype=torch.uint8) if self.has_masks else None,
            maps=tuple(stored.expand(size, *stored.shape).contiguous() for stored in self.maps),
        )


def probe_memory(
    cfg: Config,
    accelerator: Accelerator,
    data: Data,
    detector: Detector,
    features: Features | None,
) -> Memory | None:
    """Collective: called on every rank. Try what memory holds, and choose the micro-batch if that is left to it.

    Returns: None where nothing is tried: on a CPU with a micro_batch_size, and before weights are cut into parts,
        which need not fit whole.
    """
    if cfg.train.parallel == "fsdp2":
        return None
    if accelerator.device.type != "cuda" and cfg.train.micro_batch_size != AUTO:
        return None
    return tried(cfg, accelerator, data, detector, features)


def tried(
    cfg: Config,
    accelerator: Accelerator,
    data: Data,
    detector: Detector,
    features: Features | None,
) -> Memory:
    """Collective: called on every rank. What the trial finds; see `probe_memory`."""
    device, chosen = accelerator.device, cfg.train.micro_batch_size == AUTO
    share = cfg.train.global_batch_size // accelerator.num_processes
    with leaving_no_trace(detector.trainable, device):
        trial = Trial(cfg, accelerator, data, detector, features)
        trial.peak(1)  # from now on gradients, kernels and handles are there
        gc.collect()
        restart_peak(device)
        accelerator.wait_for_everyone()
        limit = limit_bytes(device)
        accelerator.wait_for_everyone()  # all have looked before one begins to fill it
        fits, slope, first = extrapolated(trial, limit, share)
        (fits,) = smallest(accelerator, [fits])
        if chosen:
            size, peak = choose(accelerator, trial, limit, share, fits)
        else:
            size = micro_batch_size(cfg.train, accelerator.num_processes)
            peak = trial.peak(size)
            fits = fits if peak is not None else min(fits, size - 1)
    told = peak if peak is not None else first + slope * (size - 1)
    fits, least, limit = smallest(accelerator, [fits, -told, limit])
    return Memory(size, -least, limit, fits, trial.canvas, trial.objects, chosen)


def extrapolated(trial: Trial, limit: int, share: int) -> tuple[int, int, int]:
    """On one rank: images that fit, bytes that one more takes, and those of the first.

    Args:
        share: of the step's images, that a process has.
    """
    first = trial.peak(1)
    if first is None:
        return 0, 0, limit
    sizes = [size for size in SECOND_SIZES if size <= max(2, share)]
    tried = ((size, trial.peak(size)) for size in sizes)
    size, peak = next(((size, peak) for size, peak in tried if peak is not None), (1, first))
    if size == 1:
        return 1, 0, first
    slope = (peak - first) // (size - 1)
    if slope <= 0:  # too small to be seen
        return share, 0, first
    fits = max(0, 1 + (limit - first) // slope)
    return fits if size == sizes[0] else min(fits, sizes[0] - 1), slope, first


def choose(
    accelerator: Accelerator, trial: Trial, limit: int, share: int, fits: int
) -> tuple[int, int | None]:
    """Collective: called on every rank. The largest part of a process's share that fits, tried; and its peak.

    Raises:
        UserError: if not even one image does.
    """
    peak = None
    for size in (s for s in range(share, 0, -1) if share % s == 0 and s <= max(fits, 1)):
        peak = trial.peak(size)
        if not any_rank(accelerator, peak is None or peak > limit):
            return size, peak
    if any_rank(accelerator, peak is None):
        height, width = trial.canvas
        raise UserError(
            f"out of memory on {accelerator.device}: not even one image of {width} x {height} px with {trial.objects} "
            "object(s) fits; lower data.image_size, or train less of the model (model.freeze)"
        )
    return 1, peak


@contextlib.contextmanager
def leaving_no_trace(trainable: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """After the block weights have no gradients, and buffers and random states are as before it."""
    buffers = [(buffer, buffer.clone()) for buffer in trainable.buffers()]
    of_numpy, of_python = np.random.get_state(), random.getstate()
    was_training = trainable.training
    trainable.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        trainable.train(was_training)
        trainable.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        restart_peak(device)


def smallest(accelerator: Accelerator, values: Sequence[int]) -> list[int]:
    """Collective: called on every rank. The smallest of each value over all ranks."""
    own = torch.tensor([values], dtype=torch.int64, device=accelerator.device)
    return [int(value) for value in accelerator.gather(own).amin(0).tolist()]


def most_objects(data: Data) -> int:
    """Most that a training image can have: objects, or regions of classes."""
    if data.labels == "regions":
        return len(data.taxonomy.names)
    most = int(data.train.table.counts.max())
    return max(1, most + (data.labels == "segments"))  # one more of the background


def check_measurable(cfg: Config, device: torch.device) -> None:
    """
    Raises:
        UserError: for train.micro_batch_size auto where memory cannot be measured.
    """
    if cfg.train.micro_batch_size == AUTO and not can_measure(device):
        raise UserError(
            f"train.micro_batch_size auto: memory of {device.type} cannot be measured on this system ({os.uname().sysname}); "
            "give a number"
        )
