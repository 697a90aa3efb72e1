"""Scaling and normalisation of pixels, on the device."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalization:
    """(pixel x scale - mean) / std, per RGB channel; what the backbone was pretrained with."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255
    declared: bool = False
    """False: the backbone's folder says nothing, and ImageNet's values are assumed"""

    @classmethod
    def of_folder(cls, folder: Path) -> "Normalization":
        """Values of a model folder's preprocessor_config.json."""
        file = folder / "preprocessor_config.json"
        if not file.is_file():
            return cls()
        try:
            return cls.of_settings(json.loads(file.read_text()))
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file}: not the settings of an image processor: {error}") from error

    @classmethod
    def of_settings(cls, settings: dict[str, Any]) -> "Normalization":
        """Values of an image processor's settings (`to_dict()`)."""
        if not isinstance(settings, dict):
            raise ValueError("expected a table of settings")
        flags = [settings.get(name, True) for name in ("do_rescale", "do_normalize")]
        if not all(isinstance(flag, bool | None) for flag in flags):
            raise ValueError(f"do_rescale and do_normalize must be true or false, not {flags}")
        scale = settings.get("rescale_factor", 1 / 255) if flags[0] else 1.0
        if not _is_number(scale) or scale <= 0:
            raise ValueError(f"rescale_factor {scale}: must be a number above 0")
        scale = float(scale)
        if not flags[1]:
            return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale, declared=True)
        mean = settings.get("image_mean") or IMAGENET_MEAN
        std = settings.get("image_std") or IMAGENET_STD
        if not (_three_numbers(mean) and _three_numbers(std) and min(std) > 0):
            raise ValueError(
                f"image_mean {mean} and image_std {std} must be three numbers each, deviations above 0"
            )
        return cls(tuple(mean), tuple(std), scale, declared=True)

    def __call__(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, H, W] of uint8 pixels; zero where the bool mask [B, H, W] is false."""
        mean = _per_channel(self.mean, pixel_values.device)
        std = _per_channel(self.std, pixel_values.device)
        values = (pixel_values.float() * self.scale - mean) / std
        return values.masked_fill_(~pixel_mask[:, None], 0.0)


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 [1, 3, 1, 1], copied to the device once."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def _three_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
