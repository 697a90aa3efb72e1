"""The data order: sample i of a run is a pure function of (seed, i), whatever the world size.

The stream is endless: sample i is element i mod N of the permutation drawn for epoch i // N. Step
s takes samples [s G, (s + 1) G). Nothing is dropped and no batch is partial; resuming at step s
means starting there, and nothing that was skipped is decoded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Protocol

import numpy as np

from data.canvas import COMMON_MULTIPLE_PX, step_canvas
from data.feed.permutation import KeyedPermutation
from data.feed.repeats import Repeats

WINDOW_STEPS = 16
"""Steps whose images are grouped by aspect ratio; more pads less, but mixes less"""

SPARES = 4
"""Images that can stand in for one that cannot be decoded"""

HELD_IMAGES = 1 << 22
"""Of more images no order of an epoch is held, 8 bytes an image and rank: each window is computed when it is due"""


class Sizes(Protocol):
    """(height, width) of every training image after resizing; an int64 array [N, 2] is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: np.ndarray, /) -> np.ndarray: ...


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
    repeat: int = 0
    """How often the image was there before in this epoch"""


def epoch_order(sizes: Sizes, global_batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation, int64 [N], of one epoch, in which a step's images have similar aspect ratios.

    A random permutation is cut into windows of 16 steps. Inside a window images are sorted by aspect
    ratio, cut into steps, and the steps are shuffled. Steps do not end where epochs do: the cuts
    follow the steps of the whole run, and only the step on the border of two epochs is mixed.
    """
    num = len(sizes)
    rng = np.random.default_rng([seed, epoch, num])
    order = rng.permutation(num)
    ratio = _ratios(sizes, np.arange(num))
    head = -(epoch * num) % global_batch_size  # samples that finish the previous epoch's last step
    parts = [order[:head]]
    for start in range(head, num, WINDOW_STEPS * global_batch_size):
        window = order[start : start + WINDOW_STEPS * global_batch_size]
        parts.append(_in_steps(window, ratio[window], global_batch_size, rng))
    return np.concatenate(parts)


class ComputedOrder:
    """An order of an epoch as `epoch_order` makes them, of which no more than a few windows are held."""

    def __init__(self, sizes: Sizes, global_batch_size: int, seed: int, epoch: int):
        self._sizes = sizes
        self._key = [seed, epoch, len(sizes)]
        self._shuffled = KeyedPermutation(len(sizes), self._key)
        self._step = global_batch_size
        self._head = -(epoch * len(sizes)) % global_batch_size
        self._window = lru_cache(maxsize=4)(self._made)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The images at some places of the epoch, int64 [n]."""
        windows, inside = np.divmod(places - self._head, WINDOW_STEPS * self._step)
        picks = np.empty_like(places)
        for window in np.unique(windows).tolist():
            own = windows == window
            if window < 0:
                picks[own] = self._shuffled[places[own]]
            else:
                picks[own] = self._window(window)[inside[own]]
        return picks

    def _made(self, number: int) -> np.ndarray:
        start = self._head + number * WINDOW_STEPS * self._step
        end = min(start + WINDOW_STEPS * self._step, len(self._sizes))
        window = self._shuffled[np.arange(start, end)]
        rng = np.random.default_rng([*self._key, number])
        return _in_steps(window, _ratios(self._sizes, window), self._step, rng)


def _ratios(sizes: Sizes, places: np.ndarray) -> np.ndarray:
    chosen = sizes[places]
    return chosen[:, 0] / chosen[:, 1]


def _in_steps(
    window: np.ndarray, ratios: np.ndarray, global_batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """The images of a window, int64 [n], those of a step similar in aspect ratio, the steps shuffled."""
    window = window[np.argsort(ratios, kind="stable")]
    num_whole = len(window) // global_batch_size
    whole = window[: num_whole * global_batch_size].reshape(num_whole, global_batch_size)
    rest = window[num_whole * global_batch_size :]
    return np.concatenate([whole[rng.permutation(num_whole)].ravel(), rest])


class StepSampler:
    """Micro-batches of one rank, in order, from step `start_step` on, without end.

    Each step's global batch is cut into accumulation x world micro-batches; rank r takes those
    numbered r, r + world, ... . As the batch sampler of a DataLoader it yields lists of SampleRef.
    """

    def __init__(
        self,
        sizes: Sizes,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        multiple: int = COMMON_MULTIPLE_PX,
        canvas: tuple[int, int] | None = None,
        shown_steps: int = 0,
        repeats: Repeats | None = None,
    ):
        """
        Args:
            multiple: of which the sides of a canvas are multiples, px.
            canvas: (height, width), px, of all steps; default: each has its own, as large as it needs it.
            shown_steps: first steps whose pixels are looked at.
            repeats: what makes an epoch, if not each image once.
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
        self.repeats = repeats
        self._length = len(sizes) if repeats is None else len(repeats)
        self._orders: dict[int, Order] = {}

    @property
    def accumulation(self) -> int:
        """Micro-batches per step on one rank."""
        return self.global_batch_size // (self.micro_batch_size * self.world)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in count(self.start_step):
            canvas = self._canvas(step)
            for turn in range(self.accumulation):
                start = (turn * self.world + self.rank) * self.micro_batch_size
                yield self._samples(step, canvas, range(start, start + self.micro_batch_size))

    def global_batch(self, step: int) -> list[SampleRef]:
        """The whole step's samples; the same on every rank."""
        return self._samples(step, self._canvas(step), range(self.global_batch_size))

    def _canvas(self, step: int) -> tuple[int, int]:
        if self.canvas is not None:
            return self.canvas
        first = step * self.global_batch_size
        picks, _ = self._picks(np.arange(first, first + self.global_batch_size))
        return step_canvas(self.sizes[picks], self.multiple)

    def _samples(self, step: int, canvas: tuple[int, int], places: range) -> list[SampleRef]:
        """Those at some places of a step."""
        first, size = step * self.global_batch_size, self.global_batch_size
        turns = first + np.arange(1 + SPARES)[:, None] * size  # the step's, and the next ones'
        picks, repeats = self._picks((turns + np.array(places)).ravel())
        picks = picks.reshape(1 + SPARES, -1)
        return [
            SampleRef(
                index,
                (first + place) // self._length,
                canvas,
                tuple(spares),
                step < self.shown_steps,
                repeat,
            )
            for place, (index, *spares), repeat in zip(
                places, picks.T.tolist(), repeats[: len(places)].tolist(), strict=True
            )
        ]

    def _picks(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images of some places of the stream, int64 [n], and how often each was there before, int64 [n]."""
        epochs, places = np.divmod(samples, self._length)
        picks, repeats = np.empty_like(samples), np.zeros_like(samples)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            of_epoch = epochs == epoch
            order = self._order(epoch)
            picked = order.order[places[of_epoch]]
            if order.images is not None:
                images = order.images[picked]
                repeats[of_epoch] = picked - np.searchsorted(order.images, images)
                picked = images
            picks[of_epoch] = picked
        return picks, repeats

    def _order(self, epoch: int) -> "Order":
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = self._made(epoch)
        return self._orders[epoch]

    def _made(self, epoch: int) -> "Order":
        if self.repeats is not None:
            images = self.repeats.images(epoch)
            order = epoch_order(self.sizes[images], self.global_batch_size, self.seed, epoch)
            return Order(order, images)
        make = epoch_order if len(self.sizes) <= HELD_IMAGES else ComputedOrder
        return Order(make(self.sizes, self.global_batch_size, self.seed, epoch))


@dataclass(frozen=True)
class Order:
    """That of an epoch."""

    order: np.ndarray | ComputedOrder
    images: np.ndarray | None = None
    """int64, rising: which image each number in `order` is; None: itself"""


def evaluation_batches(num_images: int, batch_size: int) -> list[list[int]]:
    """Cut a validation split into batches.

    The cut depends on the split alone; ranks are dealt whole batches, so a prediction does not
    depend on the world size.
    """
    starts = range(0, num_images, batch_size)
    return [list(range(start, min(start + batch_size, num_images))) for start in starts]
