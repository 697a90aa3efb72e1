"""What the processes of a run measure together: each its share, and what was found is put together."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator

GATHER_BYTES = 1 << 22
"""Most bytes per rank and gather: device memory does not grow with the validation split"""


def own_share(tasks: Sequence, costs: Sequence[float], accelerator: Accelerator | None) -> list:
    """This rank's tasks, of which all have about the same costs; all of them without an accelerator.

    Every rank knows the same tasks and costs. The most expensive ones are dealt out first, to who has least.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return list(tasks)
    loads = np.zeros(accelerator.num_processes)
    own = []
    for place in np.argsort(-np.asarray(costs, dtype=np.float64), kind="stable").tolist():
        rank = int(loads.argmin())
        loads[rank] += costs[place]
        if rank == accelerator.process_index:
            own.append(tasks[place])
    return own


def own_images(num: int, accelerator: Accelerator | None) -> range:
    """Places of this rank's images of a split of `num`."""
    if accelerator is None:
        return range(num)
    return range(accelerator.process_index, num, accelerator.num_processes)


def gather_rows(accelerator: Accelerator | None, rows: np.ndarray) -> np.ndarray:
    """Collective: called on every rank. The rows, [n, C], of all ranks, whatever their n."""
    if accelerator is None or accelerator.num_processes == 1:
        return rows
    counts = accelerator.gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    chunks = []
    most = max(1, GATHER_BYTES // max(1, rows.shape[1] * rows.itemsize))
    for start in range(0, max(counts), most):
        own = torch.from_numpy(rows[start : start + most].copy())
        padded = torch.zeros(min(most, max(counts) - start), rows.shape[1], dtype=own.dtype)
        padded[: len(own)] = own
        chunks.append(accelerator.gather(padded[None].to(accelerator.device)).cpu().numpy())
    nothing = np.zeros((len(counts), 0, rows.shape[1]), rows.dtype)
    parts = np.concatenate([nothing, *chunks], axis=1)
    return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])
