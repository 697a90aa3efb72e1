"""A run whose rank 1 gets its images late: `torchrun ... slow_rank_worker.py ARGUMENTS`."""

import os
import sys
import time

import train_accelerate
from data.feed.loader import TrainDataset

if os.environ["RANK"] == "1":
    fast = TrainDataset.__getitem__

    def slow(self, ref):
        time.sleep(0.1)
        return fast(self, ref)

    TrainDataset.__getitem__ = slow  # type: ignore[method-assign]

sys.exit(train_accelerate.main(sys.argv[1:]))
