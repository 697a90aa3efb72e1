"""The one decoder: training, evaluation and prediction see the same pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.images.headers import ORIENTATION, SIDEWAYS, of_the_machine, readable_formats
from data.window import Window
from errors import UserError

MILD_SHRINK = 1.25
"""Up to here bilinear sampling without antialiasing is hardly another picture"""
BLOCK_PX = 1 << 20
"""Pixels that are scaled from 16 to 8 bits at once, which bounds the memory it takes"""
_LAST: dict[str, Any] = {}
"""The image that a window was cut from last, in this process"""


def decode(
    source: Path | bytes | Window,
    where: str,
    at_most: tuple[int, int] | None = None,
    draft: bool = False,
    expected: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode an image to RGB as a person sees it, EXIF orientation applied.

    Args:
        at_most: (height, width); a larger image is made smaller to this size, with Pillow's
            antialiased bilinear filter, as the exported image processor does it.
        draft: for training: faster, and pixel for pixel not quite the same. A JPEG of at least
            twice that size is decoded at 1/2, 1/4 or 1/8 of its own; an image that is larger by less
            than MILD_SHRINK comes as it is, to be resized together with its augmentation.

        expected: (height, width) that the upright image has to have before it is made smaller; a window has its own.

    Returns: uint8 [H, W, 3], not to be written to.

    Raises:
        UserError: naming `where` if the image cannot be read.
        OSError, MemoryError: if the machine is short of what reading any image takes.
    """
    if isinstance(source, Window):
        return _cut(source, where, at_most, draft)
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise ValueError("not a file")  # a pipe or a device would be waited for, or never end
        content = source if isinstance(source, bytes) else source.read_bytes()
        with _open(content) as image:
            if draft and at_most is not None and image.format == "JPEG":
                sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
                before = image.size if sideways else image.size[::-1]
                image.draft(None, at_most if sideways else at_most[::-1])
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
            else:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                before = (image.height, image.width)
            if expected is not None and before != expected:
                raise ValueError(
                    f"it has {before[1]} x {before[0]} px, its header said {expected[1]} x {expected[0]}"
                )
            rgb = to_rgb(image)
            return np.asarray(_shrunk(rgb, at_most, draft))
    except Exception as error:  # Pillow's parsers raise whatever they run into
        if of_the_machine(error):
            raise
        raise UserError(f"{where}: cannot decode the image: {_reason(error)}") from error


def _shrunk(rgb: Image.Image, at_most: tuple[int, int] | None, draft: bool) -> Image.Image:
    if at_most is None:
        return rgb
    shrink = max(rgb.height / at_most[0], rgb.width / at_most[1])
    if shrink <= (MILD_SHRINK if draft else 1.0):
        return rgb
    return rgb.resize(at_most[::-1], Image.Resampling.BILINEAR)


def _cut(window: Window, where: str, at_most: tuple[int, int] | None, draft: bool) -> np.ndarray:
    """A part of an image, of which the whole is kept: its other parts usually follow."""
    key = (window.source, window.size)
    if _LAST.get("key") != key:
        _LAST.clear()
        _LAST.update(key=key, whole=decode(window.source, where, expected=window.size))
    whole: np.ndarray = _LAST["whole"]
    y, x = window.y, window.x
    part = Image.fromarray(whole[y : y + window.height, x : x + window.width])
    return np.asarray(_shrunk(part, at_most, draft))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: 16-bit scaled to 8, transparency composited on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(background, rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of [H, W], whose white is 65535, or 255 if nothing is brighter."""
    top = 65535.0 if values.max(initial=0) > 255 else 255.0
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, BLOCK_PX // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float64)
        scaled[start : start + rows] = np.round(block.clip(0, top) * (255.0 / top))
    return scaled


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image of a known form"
    known = isinstance(error, (OSError, SyntaxError, ValueError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _open(source: Path | bytes) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(stream, formats=readable_formats())
