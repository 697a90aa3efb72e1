"""The one small all-reduce at the start of a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from data.feed.collate import Batch
from model.losses.set_criterion import StepCounts


@dataclass(frozen=True)
class Agreed:
    """What all ranks know after the all-reduce."""

    counts: StepCounts
    stop: bool
    """Some rank was asked to stop"""
    save_failed: bool
    """The last checkpoint could not be written"""
    bad_images: bool
    """Some rank met an image that cannot be decoded"""


def agree(
    accelerator: Accelerator,
    batches: Sequence[Batch],
    num_queries: int,
    stop: bool = False,
    save_failed: bool = False,
    bad_images: bool = False,
) -> Agreed:
    """Collective: called on every rank. The step's boxes and images, and flags, over all ranks.

    Args:
        batches: the micro-batches of this rank.
    """
    own = StepCounts.of_batch([n for batch in batches for n in batch.num_boxes], num_queries)
    values = torch.tensor(
        [own.num_boxes, own.num_matched, own.num_images, stop, save_failed, bad_images],
        dtype=torch.float64 if accelerator.device.type == "cpu" else torch.float32,
        device=accelerator.device,
    )
    *counts, stops, failures, bad = accelerator.reduce(values, reduction="sum").tolist()
    return Agreed(StepCounts(*counts), stops > 0, failures > 0, bad > 0)


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Collective: called on every rank. Whether the flag is set on one of them."""
    value = torch.tensor([float(flag)], device=accelerator.device)
    return bool(accelerator.reduce(value, reduction="sum").item() > 0)
