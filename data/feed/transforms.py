"""Resizing and augmentation: the only module that knows albumentations.

albumentations is kept at 2.0.8, its last MIT-licensed release. Its own seeding repeats draws across
workers and epochs, so every draw here is seeded by (seed, epoch, index) before each call.
"""

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data.boxes import from_corners, to_corners
from data.images.decode import MILD_SHRINK
from data.masks import Planes
from data.objects import Objects
from errors import UserError, nearest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version check over the network
import albumentations as A  # noqa: E402

cv2.setNumThreads(0)  # parallelism comes from worker processes

NOT_UINT8 = {"Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"}
SEVERAL_IMAGES = {"Mosaic", "MixUp", "CutMix", "CopyPaste", "OverlayElements"}
TRIAL_PX = 1024
"""Side of the image on which each transform is tried at the start"""
MIN_VISIBILITY = 0.25
"""A box that augmentation pushed out of the image for more than 75 % is dropped"""


def resize(image: np.ndarray, size: tuple[int, int], fast: bool = False) -> np.ndarray:
    """Bilinear resize of uint8 [H, W, 3] to `size` (height, width); antialiased where it shrinks.

    By Pillow, since the exported image processor resizes with it as well.

    Args:
        fast: for training: by OpenCV, ten times faster, unless it shrinks by more than MILD_SHRINK.
            Enlarged, the picture is then the same up to rounding; shrunk a little, it is sharper.
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    if fast and max(image.shape[0] / height, image.shape[1] / width) <= MILD_SHRINK:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class Augment:
    """A chain of albumentations transforms on an image and its boxes.

    Flips and affine maps at the head of the chain are drawn by albumentations and then applied, with
    the resize where it enlarges, as one warp.
    """

    def __init__(
        self,
        specs: Sequence[Mapping[str, Mapping[str, Any]]],
        min_visibility: float = MIN_VISIBILITY,
    ):
        """
        Args:
            specs: `[{TransformName: {argument: value}}, ...]`, as in the YAML.
            min_visibility: part of a box that has to be left in the image, or it is dropped.

        Raises:
            UserError: naming the transform that does not exist or whose arguments are wrong.
        """
        transforms = [_transform(spec, place) for place, spec in enumerate(specs)]
        self.warps = list(itertools.takewhile(_is_warp, transforms))
        self.others = transforms[len(self.warps) :]
        self.min_visibility = min_visibility
        self.compose = _compose(self.others, min_visibility) if self.others else None

    def __call__(
        self,
        image: np.ndarray,
        objects: Objects,
        seed: Sequence[int],
        size: tuple[int, int] | None = None,
        planes: Planes | None = None,
    ) -> tuple[np.ndarray, Objects, Planes | None]:
        """Resize and augment one image.

        Args:
            image: uint8 [H, W, 3].
            objects: inside the image, with boxes in px of the resized one.
            seed: equal seeds give equal draws.
            size: (height, width) to resize to before everything else; default: as it is.
            planes: the objects' masks on the resized image, if masks are learned.

        Returns:
            The image, the objects left in it, with boxes around what is left of their masks, and these.
            A transform under which the image would lose all its boxes is left out.
        """
        size = size or (image.shape[0], image.shape[1])
        num = len(self.warps) + len(self.others)
        states = np.random.SeedSequence(list(seed)).generate_state(1 + num)
        warp = _Warp.drawn(self.warps, [int(s) for s in states[1 : 1 + len(self.warps)]], size)
        if warp is not None:
            moved, left = warp.objects(objects, size, self.min_visibility)
            if len(objects) and not len(moved):
                warp = None
            else:
                if planes is not None:
                    planes = warp.planes(planes).only(left, len(objects))
                objects = moved
        image = resize(image, size, fast=True) if warp is None else warp.image(image, size)
        if self.compose is not None:
            transformed = self._transformed(self.compose, image, objects, planes, states)
            image, objects, planes = transformed
        if planes is not None:
            planes, objects = planes.fit(objects)
        return image, objects, planes

    def _transformed(
        self,
        compose: A.Compose,
        image: np.ndarray,
        objects: Objects,
        planes: Planes | None,
        states: np.ndarray,
    ) -> tuple[np.ndarray, Objects, Planes | None]:
        """What the transforms after the warp do, by albumentations."""
        compose.set_random_seed(int(states[0]))
        # Compose gives all transforms one seed, and with it the same draws.
        for transform, state in zip(self.others, states[1 + len(self.warps) :], strict=True):
            transform.set_random_seed(int(state))
        try:
            layers = {} if planes is None else {"masks": planes.layers()}
            kept = np.arange(len(objects))
            out = compose(image=image, bboxes=objects.boxes, kept=kept, **layers)
        except Exception as error:
            text = " ".join(str(error).split())
            raise UserError(
                f"data.augment fails on an image of {image.shape[1]} x {image.shape[0]} px: "
                f"{type(error).__name__}: {text}"
            ) from error
        left = np.asarray(out["kept"], dtype=np.int64).reshape(-1)
        if len(objects) and not len(left):
            return image, objects, planes
        boxes = np.asarray(out["bboxes"], dtype=np.float64).reshape(-1, 4)
        if planes is not None:
            planes = planes.with_layers(out["masks"]).only(left, len(objects))
        return out["image"], replace(objects.take(left), boxes=boxes), planes


@dataclass(frozen=True)
class _Warp:
    """What the drawn flips and affine maps do together, in pixels of the resized image."""

    matrix: np.ndarray
    """float64 [3, 3] for pixel centres (0 is the centre of the first pixel), as OpenCV has them"""
    is_affine: bool
    """More than flips"""
    fill: Any

    @staticmethod
    def drawn(
        transforms: Sequence[A.BasicTransform], seeds: Sequence[int], size: tuple[int, int]
    ) -> "_Warp | None":
        """Draw each transform; None if none of them is to be applied."""
        height, width = size
        matrix, applied, fill = np.eye(3), [], 0
        for transform, seed in zip(transforms, seeds, strict=True):
            transform.set_random_seed(seed)
            if not transform.should_apply():
                continue
            applied.append(transform)
            if isinstance(transform, A.HorizontalFlip):
                step = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
            elif isinstance(transform, A.VerticalFlip):
                step = np.array([[1.0, 0, 0], [0, -1, height - 1], [0, 0, 1]])
            else:
                drawn = transform.get_params_dependent_on_data({"shape": (height, width, 3)}, {})
                step, fill = drawn["matrix"], transform.fill
            matrix = step @ matrix
        if not applied:
            return None
        return _Warp(matrix, any(isinstance(t, A.Affine) for t in applied), fill)

    def image(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 [H, W, 3] resized to `size` (height, width) and warped."""
        height, width = size
        if not self.is_affine:
            image = resize(image, size, fast=True)
            upside_down, mirrored = self.matrix[1, 1] < 0, self.matrix[0, 0] < 0
            if upside_down or mirrored:
                image = cv2.flip(image, -1 if upside_down and mirrored else int(mirrored))
            return image
        if max(image.shape[0] / height, image.shape[1] / width) > MILD_SHRINK:
            image = resize(image, size)  # the warp alone would not antialias
        x, y = width / image.shape[1], height / image.shape[0]
        enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        fill = self.fill if isinstance(self.fill, Sequence) else (self.fill,) * 3
        warped = cv2.warpAffine(
            cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),  # four channels are twice as fast as three
            (self.matrix @ enlarge)[:2],
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
        return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)

    def planes(self, planes: Planes) -> Planes:
        """The planes of the resized image, warped; each pixel is what the nearest one was."""
        height, width = planes.ids.shape[1:]
        if self.is_affine:
            moved = [
                cv2.warpAffine(layer, self.matrix[:2], (width, height), flags=cv2.INTER_NEAREST)
                for layer in planes.layers()
            ]
        else:
            upside_down, mirrored = self.matrix[1, 1] < 0, self.matrix[0, 0] < 0
            step = (
                slice(None, None, -1 if upside_down else 1),
                slice(None, None, -1 if mirrored else 1),
            )
            moved = [layer[step] for layer in planes.layers()]
        return planes.with_layers(moved)

    def objects(
        self, objects: Objects, size: tuple[int, int], min_visibility: float
    ) -> tuple[Objects, np.ndarray]:
        """The objects that are left, with boxes around their warped ones, and their places, int64."""
        x1, y1, x2, y2 = to_corners(objects.boxes).T
        quads = np.stack([x1, y1, x2, y2, x1, y2, x2, y1], axis=1).reshape(-1, 4, 2)
        # Box coordinates have 0 at the edge of the first pixel, half a pixel before its centre.
        moved = (quads - 0.5) @ self.matrix[:2, :2].T + self.matrix[:2, 2] + 0.5
        whole = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
        boxes = from_corners(whole.clip(0, np.array([*size[::-1], *size[::-1]], dtype=np.float64)))
        area = from_corners(whole)[:, 2:].prod(axis=1)
        left = np.flatnonzero(boxes[:, 2:].prod(axis=1) >= min_visibility * area)
        return replace(objects.take(left), boxes=boxes[left]), left


def _compose(
    transforms: Sequence[A.BasicTransform], min_visibility: float = MIN_VISIBILITY
) -> A.Compose:
    with warnings.catch_warnings():  # transforms of colour alone do not touch boxes, it warns
        warnings.simplefilter("ignore")
        return A.Compose(
            list(transforms),
            bbox_params=A.BboxParams(
                format="coco",
                label_fields=["kept"],
                clip=True,
                filter_invalid_bboxes=True,
                min_visibility=min_visibility,
            ),
        )


def _try_out(transform: A.BasicTransform, name: str, place: int) -> None:
    """Apply a transform once, so that one that needs more than image and boxes fails at the start."""
    image = np.full((TRIAL_PX, TRIAL_PX, 3), 128, np.uint8)
    boxes, probability = np.array([[200.0, 200, 300, 300]]), transform.p
    transform.p = 1.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = _compose([transform])(image=image, bboxes=boxes, kept=np.arange(1))["image"]
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"data.augment[{place}]: {name} fails on an image with a box: "
            f"{type(error).__name__}: {text}"
        ) from error
    finally:
        transform.p = probability
    if out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] != 3:
        raise UserError(
            f"data.augment[{place}]: {name} gives {out.dtype} {list(out.shape)} instead of an RGB image"
        )


def _is_warp(transform: A.BasicTransform) -> bool:
    """Whether `_Warp` does exactly what the transform does."""
    if type(transform) is A.Affine:
        return (
            not transform.fit_output
            and transform.interpolation == cv2.INTER_LINEAR
            and transform.border_mode == cv2.BORDER_CONSTANT
            and transform.rotate_method == "largest_box"
        )
    return type(transform) in (A.HorizontalFlip, A.VerticalFlip)


def _transform(spec: Mapping[str, Mapping[str, Any]], place: int) -> A.BasicTransform:
    if len(spec) != 1:
        raise UserError(f"data.augment[{place}]: expected one transform, got {sorted(spec)}")
    name, arguments = next(iter(spec.items()))
    if name in SEVERAL_IMAGES:
        raise UserError(
            f"data.augment[{place}]: {name} makes one image of several, and each is augmented alone here; take Affine "
            "with scale for objects of other sizes (configs/augment/strong.yaml)"
        )
    kind = getattr(A, name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        raise UserError(
            f"data.augment[{place}]: albumentations has no transform {name!r}{_meant(name)}"
        )
    if name in NOT_UINT8:
        raise UserError(
            f"data.augment[{place}]: {name} does not give uint8 pixels; leave it out, since scaling and "
            "normalisation happen on the device"
        )
    known = set(kind.InitSchema.model_fields) if hasattr(kind, "InitSchema") else None
    for argument in ("mask_interpolation", "fill_mask"):
        if arguments.get(argument):
            raise UserError(
                f"data.augment[{place}]: {name} with {argument} {arguments[argument]} would mix up the "
                "numbers of objects, of which masks are made; leave it out"
            )
    unknown = sorted(set(arguments) - (known or set(arguments)) - {"p"})
    if unknown:
        raise UserError(
            f"data.augment[{place}]: {name} has no argument {unknown[0]!r}; it has {sorted(known or ())}"
        )
    try:
        transform = kind(**{key: _tupled(value) for key, value in arguments.items()})
    except Exception as error:  # whatever its checks run into
        text = " ".join(str(error).split())
        raise UserError(f"data.augment[{place}]: {name} refuses its arguments: {text}") from error
    _try_out(transform, name, place)
    return transform


def _tupled(value: Any) -> Any:
    """YAML has lists where albumentations wants tuples."""
    if isinstance(value, dict):
        return {key: _tupled(item) for key, item in value.items()}
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _meant(name: str) -> str:
    """' - did you mean ...?' for a misspelt transform."""
    known = [n for n, kind in vars(A).items() if isinstance(kind, type)]
    near = nearest(name, known)
    return f" - did you mean {near}?" if near else ""
