"""Resizing and augmentation: the only module that knows albumentations.

albumentations is kept at 2.0.8, its last MIT-licensed release. Its own seeding repeats draws across
workers and epochs, so every draw here is seeded by (seed, epoch, index) before each call.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

from config import ImageSizeConfig, UserError
from data.sampler import round_up

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version check over the network
import albumentations as A  # noqa: E402

cv2.setNumThreads(0)  # parallelism comes from worker processes

NOT_UINT8 = {"Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"}
MIN_VISIBILITY = 0.25
"""A box that augmentation pushed out of the image for more than 75 % is dropped"""


def processor_size(cfg: ImageSizeConfig) -> dict[str, int]:
    """The `size` of a transformers image processor that resizes as `resized_size` does."""
    if cfg.shortest is None:
        return {"max_height": cfg.longest, "max_width": cfg.longest}
    return {"shortest_edge": cfg.shortest, "longest_edge": cfg.longest}


def full_canvas(cfg: ImageSizeConfig) -> tuple[int, int]:
    """(height, width), px, that evaluation and the exported processor pad every image to.

    As in training, sides are multiples of 32, so that features lie where training had them.
    """
    side = round_up(cfg.longest)
    return side, side


def resized_size(height: int, width: int, cfg: ImageSizeConfig) -> tuple[int, int]:
    """(height, width) after the one resize; known before the image is decoded."""
    if cfg.shortest is None:
        size = get_image_size_for_max_height_width((height, width), cfg.longest, cfg.longest)
    else:
        size = get_size_with_aspect_ratio((height, width), cfg.shortest, cfg.longest)
    return max(1, int(size[0])), max(1, int(size[1]))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize with antialiasing of uint8 [H, W, 3] to `size` (height, width).

    Pillow's filter, since the exported image processor resizes with it as well.
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class Augment:
    """A chain of albumentations transforms on an image and its boxes."""

    def __init__(self, specs: Sequence[Mapping[str, Mapping[str, Any]]]):
        """
        Args:
            specs: `[{TransformName: {argument: value}}, ...]`, as in the YAML.

        Raises:
            UserError: naming the transform that does not exist or whose arguments are wrong.
        """
        transforms = [_transform(spec, place) for place, spec in enumerate(specs)]
        self.compose = transforms and A.Compose(
            transforms,
            bbox_params=A.BboxParams(
                format="coco",
                label_fields=["kept"],
                clip=True,
                filter_invalid_bboxes=True,
                min_visibility=MIN_VISIBILITY,
            ),
        )

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment one image.

        Args:
            image: uint8 [H, W, 3].
            boxes: float64 [n, 4] xywh, px, inside the image.
            seed: equal seeds give equal draws.

        Returns:
            The image, the m boxes left in it, and int64 [m]: which of the given boxes they are.
            An image that would lose all its boxes comes back as it was.
        """
        numbers = np.arange(len(boxes))
        if not self.compose:
            return image, boxes, numbers
        state = np.random.SeedSequence(list(seed)).generate_state(1)[0]
        self.compose.set_random_seed(int(state))
        out = self.compose(image=image, bboxes=boxes, kept=numbers)
        left = np.asarray(out["kept"], dtype=np.int64).reshape(-1)
        if len(boxes) and not len(left):
            return image, boxes, numbers
        return out["image"], np.asarray(out["bboxes"], dtype=np.float64).reshape(-1, 4), left


def _transform(spec: Mapping[str, Mapping[str, Any]], place: int) -> A.BasicTransform:
    if len(spec) != 1:
        raise UserError(f"data.augment[{place}]: expected one transform, got {sorted(spec)}")
    name, arguments = next(iter(spec.items()))
    kind = getattr(A, name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        raise UserError(f"data.augment[{place}]: albumentations has no transform {name!r}")
    if name in NOT_UINT8:
        raise UserError(
            f"data.augment[{place}]: {name} does not give uint8 pixels; leave it out, since scaling and "
            "normalisation happen on the device"
        )
    known = set(kind.InitSchema.model_fields) if hasattr(kind, "InitSchema") else None
    unknown = sorted(set(arguments) - (known or set(arguments)) - {"p"})
    if unknown:
        raise UserError(
            f"data.augment[{place}]: {name} has no argument {unknown[0]!r}; it has {sorted(known or ())}"
        )
    try:
        return kind(**{key: _tupled(value) for key, value in arguments.items()})
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"data.augment[{place}]: {name} refuses its arguments: {text}") from error


def _tupled(value: Any) -> Any:
    """YAML has lists where albumentations wants tuples."""
    if isinstance(value, dict):
        return {key: _tupled(item) for key, item in value.items()}
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
