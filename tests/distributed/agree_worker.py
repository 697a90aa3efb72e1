"""Counts and flags on a world: `torchrun ... agree_worker.py`; rank 0 prints what was agreed."""

import torch
from accelerate import Accelerator

from model.losses.terms import Counts
from training.counts import agree, any_rank

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
calls = []
gather = accelerator.gather
accelerator.gather = lambda tensor: (calls.append(tensor.shape), gather(tensor))[1]
micro_batches = [
    Counts({"boxes": 10**rank, "images": 1}, {"most": 7 - rank, "least": -1 - rank}),
    Counts({"boxes": 2, "images": 1}, {"most": rank, "least": -5}),
]
agreed = agree(accelerator, micro_batches, stop=rank == 1, failed_save=False)
assert len(calls) == 1, "one collective"
assert agreed.counts == {"boxes": 15.0, "images": 4.0, "most": 7.0, "least": -1.0}, agreed
assert agreed.flags == {"stop"}, agreed
assert any_rank(accelerator, rank == 1)
assert not any_rank(accelerator, False)
print(f"rank {rank} agrees")
accelerator.state.destroy_process_group()
