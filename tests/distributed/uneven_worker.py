"""A run whose rank 1 gets its images late and holds one at a time: `torchrun ... uneven_worker.py ARGUMENTS`."""

import os
import sys
import time

import torch

import train_accelerate
from data.feed.loader import TrainDataset
from model.trainable import Trainable

if os.environ["RANK"] == "1":
    fast, forward = TrainDataset.__getitem__, Trainable.forward

    def late(self, ref):
        time.sleep(0.1)
        return fast(self, ref)

    def with_little_memory(self, batch, counts):
        if batch.pixel_mask.shape[0] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch, counts)

    TrainDataset.__getitem__ = late  # type: ignore[method-assign]
    Trainable.forward = with_little_memory  # type: ignore[method-assign]

sys.exit(train_accelerate.main(sys.argv[1:]))
