"""The one decoder: training, evaluation and prediction see the same pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from config import UserError

EXIF_ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height"""
BLOCK_PX = 1 << 20
"""Pixels that are scaled from 16 to 8 bits at once, which bounds the memory it takes"""


def decode(source: Path | bytes, where: str) -> np.ndarray:
    """Decode an image to RGB as a person sees it, EXIF orientation applied.

    Returns: uint8 [H, W, 3].

    Raises:
        UserError: naming `where` if the image cannot be read.
    """
    try:
        with _open(source) as image:
            return np.array(to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow's parsers raise whatever they run into
        raise UserError(f"{where}: cannot decode the image: {_reason(error)}") from error


def image_size(source: Path | bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels that `decode` will give, read from the header alone.

    Raises:
        UserError: naming `where` if the header cannot be read.
    """
    try:
        with _open(source) as image:
            width, height = image.size
            sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
    except FileNotFoundError as error:
        raise UserError(f"{where}: the image file does not exist") from error
    except Exception as error:  # as above
        raise UserError(f"{where}: not a readable image: {_reason(error)}") from error
    return (height, width) if sideways else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: 16-bit scaled to 8, transparency composited on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(background, rgba)
    return image.convert("RGB")


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
    known = isinstance(error, (OSError, SyntaxError, ValueError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _open(source: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
