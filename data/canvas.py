"""Sizes of images and of what they are padded to: one rule for training, evaluation and export."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

from settings.image_keys import Fit
from settings.keys import MAX_SIDE_PX, ImageSizeConfig

COMMON_MULTIPLE_PX = 32
"""What fits the strides 4 to 32 of most backbones"""
AT_ONCE = 1 << 20
"""Images whose sizes are computed together: memory does not grow with the dataset"""


def side_multiple(strides: Iterable[int]) -> int:
    """What the sides of a canvas must be multiples of, px, for feature maps of these strides.

    On other sides a feature map ends somewhere inside the image, elsewhere for every size, and boxes
    near its right and bottom shift. Strides that divide 32 all share canvases in multiples of 32.
    """
    needed = math.lcm(*strides)
    return COMMON_MULTIPLE_PX if COMMON_MULTIPLE_PX % needed == 0 else needed


@lru_cache(maxsize=1 << 16)  # sizes recur, and each step asks for those of all its images
def resized_size(height: int, width: int, cfg: ImageSizeConfig) -> tuple[int, int]:
    """(height, width) after the one resize; known before the image is decoded."""
    if cfg.fit == "stretch":
        return cfg.longest_px, cfg.longest_px
    if cfg.shortest is None:
        size = get_image_size_for_max_height_width((height, width), cfg.longest_px, cfg.longest_px)
    else:
        size = get_size_with_aspect_ratio((height, width), cfg.shortest, cfg.longest_px)
    return max(1, int(size[0])), max(1, int(size[1]))


def resized_sizes(sizes: np.ndarray, cfg: ImageSizeConfig) -> np.ndarray:
    """As `resized_size`, of (height, width) rows, int64 [n, 2]. Few sizes are many images'."""
    both = sizes[:, 0] << 32 | sizes[:, 1]  # one number is sorted ten times as fast as two
    _, first, place = np.unique(both, return_index=True, return_inverse=True)
    resized = [resized_size(height, width, cfg) for height, width in sizes[first].tolist()]
    return np.array(resized, dtype=np.int64).reshape(-1, 2)[place]


class ResizedSizes:
    """(height, width) of images after the one resize, computed for those that are asked for."""

    def __init__(self, sizes: np.ndarray, cfg: ImageSizeConfig):
        """
        Args:
            sizes: int64 [N, 2], (height, width) of the decoded images, px; may lie in a mapped file.
        """
        self._sizes = sizes
        self._cfg = cfg

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Of some images, int64 [n, 2]."""
        return resized_sizes(self._sizes[places], self._cfg)


def step_canvas(sizes: np.ndarray, multiple: int = COMMON_MULTIPLE_PX) -> tuple[int, int]:
    """Smallest (height, width) with such sides that holds all (height, width) rows, int64 [n, 2]."""
    height, width = sizes.max(axis=0).tolist()
    return round_up(height, multiple), round_up(width, multiple)


def round_up(side_px: int, multiple: int) -> int:
    """The next multiple."""
    return -(-side_px // multiple) * multiple


@dataclass(frozen=True)
class CanvasRule:
    """What images are resized to, and what they are padded to at the right and bottom."""

    size: ImageSizeConfig
    multiple: int = COMMON_MULTIPLE_PX
    """Sides are multiples of it, px"""

    @staticmethod
    def fitted(size: ImageSizeConfig, multiple: int, fit: Fit) -> "CanvasRule":
        """That of a configuration, for a head that wants `fit` where the configuration says nothing."""
        size = replace(size, fit=size.fit or fit)
        if size.fit == "stretch":
            size = replace(size, longest=round_up(size.longest_px, multiple), shortest=None)
        return CanvasRule(size, multiple)

    @staticmethod
    def of_processor(settings: Mapping[str, Any]) -> "CanvasRule":
        """That of a transformers image processor, by its settings (`to_dict()`).

        Raises:
            ValueError: if it resizes in a way not known here.
        """
        size: Any = settings.get("size")
        padded: Any = settings.get("pad_size")
        numbers = [*_sides(size), *(_sides(padded) if padded else ())]
        if not numbers or not all(isinstance(n, int) and 0 < n <= MAX_SIDE_PX for n in numbers):
            raise ValueError(f"its image processor has size {size} and pad_size {padded}")
        stretches = "height" in size
        for name in ("do_resize",) if stretches else ("do_resize", "do_pad"):
            if settings.get(name) is False:
                raise ValueError(f"its image processor has {name} false, not supported here")
        multiple = max(padded.values()) if padded else COMMON_MULTIPLE_PX
        if "max_height" in size and size["max_height"] == size.get("max_width"):
            return CanvasRule(ImageSizeConfig(longest=size["max_height"], fit="pad"), multiple)
        if stretches and size["height"] == size.get("width"):
            return CanvasRule(
                ImageSizeConfig(longest=size["height"], fit="stretch"), size["height"]
            )
        if "shortest_edge" in size and "longest_edge" in size:
            limits = ImageSizeConfig(size["longest_edge"], size["shortest_edge"], "pad")
            return CanvasRule(limits, multiple)
        raise ValueError(f"its image processor resizes to {size}, not supported here")

    def largest(self, sizes: np.ndarray) -> tuple[int, int]:
        """(height, width) of the largest canvas of training on images of these sizes, int64 [n, 2]."""
        if self.size.canvas == "square":
            return self.full
        parts = (sizes[start : start + AT_ONCE] for start in range(0, len(sizes), AT_ONCE))
        highest = [resized_sizes(part, self.size).max(axis=0) for part in parts]
        return step_canvas(np.stack(highest), self.multiple)

    def processor_settings(self) -> dict[str, dict[str, int]]:
        """The settings by which a transformers image processor does the same."""
        limits = self.size
        if limits.fit == "stretch":
            return {"size": {"height": limits.longest_px, "width": limits.longest_px}}
        if limits.shortest is None:
            size = {"max_height": limits.longest_px, "max_width": limits.longest_px}
        else:
            size = {"shortest_edge": limits.shortest, "longest_edge": limits.longest_px}
        height, width = self.full
        return {"size": size, "pad_size": {"height": height, "width": width}}

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after the one resize; known before it is decoded."""
        return resized_size(height, width, self.size)

    @property
    def full(self) -> tuple[int, int]:
        """(height, width) that evaluation and the exported processor pad every image to."""
        side = round_up(self.size.longest_px, self.multiple)
        return side, side


def _sides(size: Any) -> list[Any]:
    """The numbers of a processor's size; those that are not set are no part of it."""
    return [side for side in size.values() if side is not None] if isinstance(size, dict) else []
