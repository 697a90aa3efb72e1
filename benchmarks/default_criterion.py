"""train_accelerate.py with transformers' own criterion, as accelerate's default settings use it.

The contrast of `benchmarks/exactness.py`: each micro-batch's loss is normalised by transformers,
averaged over micro-batches and, by DDP, over ranks. Data, schedule and everything else are ours.
"""

import os
import sys
from typing import Any

import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import train_accelerate
from errors import fail
from model.losses.set_criterion import SetCriterion
from settings.checks import micro_batch_size, world_size
from settings.load import load_config


def main(argv: list[str]) -> None:
    """Train with the loss replaced."""
    cfg = load_config(argv)
    share = micro_batch_size(cfg.train, world_size()) / cfg.train.global_batch_size

    ours = SetCriterion.__call__

    def default_loss(
        self: SetCriterion, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], None]:
        if self.step_counts is None:  # the probe before the run, on one rank after the other
            return ours(self, *args, **kwargs)
        kind = "DeformableDetrForObjectDetection" if self.focal else "ForObjectDetection"
        loss, terms, _ = LOSS_MAPPING[kind](*args, **kwargs)
        return loss * share, {name: term * share for name, term in terms.items()}, None

    SetCriterion.__call__ = default_loss  # type: ignore[method-assign, assignment]
    train_accelerate.main(argv)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        main(sys.argv[1:])
    except train_accelerate.UserError as error:
        fail(error)
