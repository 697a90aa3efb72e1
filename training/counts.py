"""The one small collective at the start of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from devices import sent


class MicroBatchCounts(Protocol):
    """What a step has to know of one micro-batch; the names are the same in each."""

    @property
    def sums(self) -> Mapping[str, float]: ...

    @property
    def maxima(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Agreed:
    """What all ranks know after the collective."""

    counts: dict[str, float]
    """Sums and maxima over all micro-batches and ranks, by name"""
    flags: frozenset[str]
    """Those that are set on some rank"""


def agree(
    accelerator: Accelerator, micro_batches: Sequence[MicroBatchCounts], **flags: bool
) -> Agreed:
    """Collective: called on every rank. The step's counts, and flags, over all ranks.

    Args:
        micro_batches: counts of this rank's micro-batches. flags: by name.
    """
    sums: dict[str, float] = {}
    maxima: dict[str, float] = {}
    for counts in micro_batches:
        for name, value in counts.sums.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, value in counts.maxima.items():
            maxima[name] = max(maxima.get(name, value), value)
    own = torch.tensor(
        [*sums.values(), *maxima.values(), *map(float, flags.values())],
        # fp32 counts pixels to 17 million only; Apple's GPUs have nothing else.
        dtype=torch.float32 if accelerator.device.type == "mps" else torch.float64,
    )
    everyone = accelerator.gather(sent(own, accelerator.device)[None])  # [W, N]
    total, largest = torch.stack([everyone.sum(0), everyone.amax(0)]).tolist()
    of_sums, of_maxima = len(sums), len(sums) + len(maxima)
    return Agreed(
        dict(zip([*sums, *maxima], [*total[:of_sums], *largest[of_sums:of_maxima]], strict=True)),
        frozenset(name for name, top in zip(flags, largest[of_maxima:], strict=True) if top > 0),
    )


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Collective: called on every rank. Whether the flag is set on one of them."""
    return bool(agree(accelerator, [], flag=flag).flags)
