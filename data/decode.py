"""The one decoder: training, evaluation and prediction see the same pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from config import UserError

EXIF_ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height"""
NOT_DECODABLE = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)
"""What Pillow raises for broken images, and for those that claim more than 179 megapixels"""


def decode(source: Path | bytes, where: str) -> np.ndarray:
    """Decode an image to RGB as a person sees it, EXIF orientation applied.

    Returns: uint8 [H, W, 3].

    Raises:
        UserError: naming `where` if the image cannot be read.
    """
    try:
        with _open(source) as image:
            return np.array(to_rgb(ImageOps.exif_transpose(image)))
    except NOT_DECODABLE as error:
        raise UserError(f"{where}: cannot decode the image: {error}") from error


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
    except NOT_DECODABLE as error:
        raise UserError(f"{where}: not a readable image: {error}") from error
    return (height, width) if sideways else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: 16-bit scaled to 8, transparency composited on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray(np.round(values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(background, rgba)
    return image.convert("RGB")


def _open(source: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
