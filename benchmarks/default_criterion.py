"""train_accelerate.py with transformers' own criterion, as accelerate's default settings use it.

The contrast of `benchmarks/exactness.py`: each micro-batch's loss is normalised by transformers,
averaged over micro-batches and, by DDP, over ranks. Data, schedule and everything else are ours.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import train_accelerate
from data.batch import Batch
from errors import ending_with_one_line
from model.losses.set_criterion import SetCriterion, SetOutputs
from model.losses.terms import Losses
from settings.checks import micro_batch_size, world_size
from settings.load import load_config


def labels_of(batch: Batch) -> list[dict[str, torch.Tensor]]:
    """The batch's objects as transformers wants them: class_labels and boxes of each image."""
    parts = [batch.objects.of_image(row) for row in range(len(batch.num_objects))]
    return [{"class_labels": part.classes, "boxes": part.boxes} for part in parts]


def their_losses(outputs: SetOutputs, batch: Batch, config: Any, focal: bool) -> Losses:
    """Loss and terms of transformers' criterion for a batch alone."""
    criterion: Any = LOSS_MAPPING[
        "DeformableDetrForObjectDetection" if focal else "ForObjectDetection"
    ]
    loss, terms, _ = criterion(
        outputs.logits[-1],
        labels_of(batch),
        outputs.logits.device,
        outputs.boxes[-1],
        config,
        outputs.logits,
        outputs.boxes,
    )
    return Losses(loss, terms)


def main(argv: list[str]) -> None:
    """Train with the loss replaced."""
    cfg = load_config(argv)
    share = micro_batch_size(cfg.train, world_size()) / cfg.train.global_batch_size

    ours = SetCriterion.__call__

    def default_loss(
        self: SetCriterion, outputs: SetOutputs, batch: Batch, step_counts: Mapping[str, float]
    ) -> Losses:
        if not batch.image_ids:  # the probe before the run, on one rank after the other
            return ours(self, outputs, batch, step_counts)
        theirs = their_losses(outputs, batch, self.config, self.focal)
        return Losses(theirs.total * share, {n: term * share for n, term in theirs.terms.items()})

    SetCriterion.__call__ = default_loss  # type: ignore[method-assign, assignment]
    train_accelerate.main(argv)


if __name__ == "__main__":
    with ending_with_one_line():
        main(sys.argv[1:])
