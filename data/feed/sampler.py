"""The data order: sample i of a run is a pure function of (seed, i), whatever the world size.

The stream is endless: sample i is element i mod N of the permutation drawn for epoch i // N. Step
s takes samples [s G, (s + 1) G). Nothing is dropped and no batch is partial; resuming at step s
means starting there, and nothing that was skipped is decoded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from data.canvas import COMMON_MULTIPLE_PX, step_canvas

WINDOW_STEPS = 16
"""Steps whose images are grouped by aspect ratio; more pads less, but mixes less"""

SPARES = 4
"""Images that can stand in for one that cannot be decoded"""


@dataclass(frozen=True)
class SampleRef:
    """One place of the stream: what a worker needs to make the sample."""

    index: int
    """Image of the training split"""
    epoch: int
    canvas: tuple[int, int]
    """(height, width), px, that all images of the step are padded to"""
    spares: tuple[int, ...] = ()
    """Images at the same place of the next steps, to stand in for one that cannot be decoded"""
    shown: bool = False
    """Its pixels are looked at by people"""


def epoch_order(sizes: np.ndarray, global_batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation, int64 [N], of one epoch, in which a step's images have similar aspect ratios.

    A random permutation is cut into windows of 16 steps. Inside a window images are sorted by aspect
    ratio, cut into steps, and the steps are shuffled. Steps do not end where epochs do: the cuts
    follow the steps of the whole run, and only the step on the border of two epochs is mixed.

    Args:
        sizes: int64 [N, 2], (height, width) of every image after resizing.
    """
    num = len(sizes)
    rng = np.random.default_rng([seed, epoch, num])
    order = rng.permutation(num)
    head = -(epoch * num) % global_batch_size  # samples that finish the previous epoch's last step
    ratio = sizes[:, 0] / sizes[:, 1]
    parts = [order[:head]]
    for start in range(head, num, WINDOW_STEPS * global_batch_size):
        window = order[start : start + WINDOW_STEPS * global_batch_size]
        window = window[np.argsort(ratio[window], kind="stable")]
        num_whole = len(window) // global_batch_size
        whole = window[: num_whole * global_batch_size].reshape(num_whole, global_batch_size)
        parts += [*whole[rng.permutation(num_whole)], window[num_whole * global_batch_size :]]
    return np.concatenate(parts)


class StepSampler:
    """Micro-batches of one rank, in order, from step `start_step` on, without end.

    Each step's global batch is cut into accumulation x world micro-batches; rank r takes those
    numbered r, r + world, ... . As the batch sampler of a DataLoader it yields lists of SampleRef.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        multiple: int = COMMON_MULTIPLE_PX,
        canvas: tuple[int, int] | None = None,
        shown_steps: int = 0,
    ):
        """
        Args:
            sizes: int64 [N, 2], (height, width) of every training image after resizing.
            multiple: of which the sides of a canvas are multiples, px.
            canvas: (height, width), px, of all steps; default: each has its own, as large as it needs it.
            shown_steps: first steps whose pixels are looked at.
        """
        assert global_batch_size % (micro_batch_size * world) == 0
        self.sizes = sizes
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world = world
        self.multiple = multiple
        self.canvas = canvas
        self.shown_steps = shown_steps
        self._orders: dict[int, np.ndarray] = {}

    @property
    def accumulation(self) -> int:
        """Micro-batches per step on one rank."""
        return self.global_batch_size // (self.micro_batch_size * self.world)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in count(self.start_step):
            picks = self._picks(step)
            for turn in range(self.accumulation):
                start = (turn * self.world + self.rank) * self.micro_batch_size
                yield self._samples(step, picks, range(start, start + self.micro_batch_size))

    def global_batch(self, step: int) -> list[SampleRef]:
        """The whole step's samples; the same on every rank."""
        return self._samples(step, self._picks(step), range(self.global_batch_size))

    def _samples(self, step: int, picks: np.ndarray, places: range) -> list[SampleRef]:
        """Those at some places of a step.

        Args:
            picks: as `_picks` gives them.
        """
        first = step * self.global_batch_size
        canvas = self.canvas or step_canvas(self.sizes[picks[0]], self.multiple)
        own = picks[:, places.start : places.stop].T.tolist()
        return [
            SampleRef(
                index,
                (first + place) // len(self.sizes),
                canvas,
                tuple(spares),
                step < self.shown_steps,
            )
            for place, (index, *spares) in zip(places, own, strict=True)
        ]

    def _picks(self, step: int) -> np.ndarray:
        """int64 [1 + SPARES, G]: the images of a step, and those of the next steps, which stand in for them."""
        first = step * self.global_batch_size
        samples = np.arange(first, first + self.global_batch_size * (1 + SPARES))
        epochs, places = np.divmod(samples, len(self.sizes))
        picks = np.empty_like(samples)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            of_epoch = epochs == epoch
            picks[of_epoch] = self._order(epoch)[places[of_epoch]]
        return picks.reshape(1 + SPARES, -1)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = epoch_order(self.sizes, self.global_batch_size, self.seed, epoch)
        return self._orders[epoch]


def evaluation_batches(num_images: int, batch_size: int) -> list[list[int]]:
    """Cut a validation split into batches.

    The cut depends on the split alone; ranks are dealt whole batches, so a prediction does not
    depend on the world size.
    """
    starts = range(0, num_images, batch_size)
    return [list(range(start, min(start + batch_size, num_images))) for start in starts]
