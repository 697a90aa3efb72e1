"""The one small all-reduce at the start of a step."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from data.collate import Batch
from model.criterion import StepCounts


def global_counts(
    accelerator: Accelerator, batches: Sequence[Batch], num_queries: int
) -> StepCounts:
    """Collective: called on every rank. Counts of the step's boxes and images over all ranks.

    Args:
        batches: the micro-batches of this rank.
    """
    own = StepCounts.of_batch([n for batch in batches for n in batch.num_boxes], num_queries)
    values = torch.tensor(
        [own.num_boxes, own.num_matched, own.num_images],
        dtype=torch.float64 if accelerator.device.type == "cpu" else torch.float32,
        device=accelerator.device,
    )
    return StepCounts(*accelerator.reduce(values, reduction="sum").tolist())
