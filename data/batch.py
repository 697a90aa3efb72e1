"""What the model gets: samples, and batches of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from data.masks import Planes
from data.objects import Objects
from devices import pins

LARGE = ("pixel_values", "pixel_mask", "masks", "ignored")
"""What of a batch goes from a worker as tensors, beside the maps"""
MAP = "map"
"""Begins the names of maps on that way"""


@dataclass(frozen=True)
class Sample:
    """One image as the model will see it."""

    image: np.ndarray
    """uint8 [h, w, 3], resized and augmented"""
    objects: Objects
    """What is on it; boxes xywh in pixels of `image`"""
    image_id: int | str
    index: int
    """Place in its split"""
    orig_size: tuple[int, int]
    """(height, width) of the decoded image, px"""
    canvas: tuple[int, int]
    """(height, width) to pad to, px"""
    bad: tuple[str, ...] = ()
    """What was wrong with the images that this one stands in for"""
    missing: bool = False
    """Its pixels cannot be had, and are blank"""
    noise_key: int = 0
    """Seed of whatever a head draws at random for this image"""
    planes: Planes | None = None
    """The objects' masks on `image`, where masks are learned"""
    maps: tuple[torch.Tensor, ...] = ()
    """[C, h, w], what the backbone makes of the image, where that was stored; `image` is then blank"""


@dataclass
class Batch:
    """One micro-batch of B images."""

    pixel_values: torch.Tensor
    """uint8 [B, 3, H, W]; zero where padded"""
    pixel_mask: torch.Tensor
    """bool [B, H, W]; true on the image"""
    objects: Objects
    """Those of all images, one after the other, as tensors; boxes float32 cxcywh in [0, 1] of the
    unpadded image, `image` the row of the batch"""
    num_objects: list[int]
    """Of each image"""
    image_ids: list[int | str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Place of each image in its split"""
    orig_sizes: list[tuple[int, int]] = field(default_factory=list)
    """(height, width) of each decoded image, px"""
    missing: list[bool] = field(default_factory=list)
    """Whether an image's pixels cannot be had"""
    bad: list[str] = field(default_factory=list)
    """Images that could not be decoded, and why; another one is in the place of each"""
    noise_keys: list[int] = field(default_factory=list)
    """Seed of whatever a head draws at random for each image"""
    ignored: torch.Tensor | None = None
    """uint8 [B, H/4, W/4] beside masks: how many of the 16 pixels of each square nobody knows"""
    maps: tuple[torch.Tensor, ...] = ()
    """[B, C, h, w] each, what the backbone makes of the images, where that was stored; pixels are then blank"""
    through_pipe: bool = False
    """On the way from a worker: no shared memory, where there is too little of it"""

    def __getstate__(self) -> dict[str, Any]:
        """For the way from a worker: small tensors as arrays, since each tensor costs a handshake."""
        large: dict[str, Any] = {"masks": self.objects.masks, "ignored": self.ignored}
        large |= {"pixel_values": self.pixel_values, "pixel_mask": self.pixel_mask}
        large |= {f"{MAP}{n}": stored for n, stored in enumerate(self.maps)}
        if self.through_pipe:
            large = {n: None if t is None else t.numpy() for n, t in large.items()}
        small = replace(self.objects, masks=None).each(torch.Tensor.numpy)
        return {**self.__dict__, **large, "objects": small, "maps": len(self.maps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = [f"{MAP}{n}" for n in range(state["maps"])]
        large = {n: state.pop(n) for n in (*names, *LARGE)}
        if state["through_pipe"]:
            large = {n: None if a is None else torch.from_numpy(a) for n, a in large.items()}
        masks = large.pop("masks")
        maps = tuple(large.pop(name) for name in names)
        self.__dict__.update({**state, **large, "maps": maps})
        self.objects = replace(self.objects.each(torch.from_numpy), masks=masks)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader's pinning thread."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copies from pinned memory do not block.

        Apple's GPUs read memory of the host that a copy was to free, unless it blocks.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=pins(device)))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        pixels, mask = change(self.pixel_values), change(self.pixel_mask)
        objects = self.objects.each(change)
        ignored = None if self.ignored is None else change(self.ignored)
        maps = tuple(change(stored) for stored in self.maps)
        return replace(
            self, pixel_values=pixels, pixel_mask=mask, objects=objects, ignored=ignored, maps=maps
        )
