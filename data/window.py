"""A part of an image that is still encoded."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Window:
    """What of an encoded image is wanted."""

    source: Path | bytes
    """Of the whole image"""
    size: tuple[int, int]
    """(height, width) of the whole decoded image, px"""
    x: int
    """Left side, px"""
    y: int
    """Upper side, px"""
    width: int
    """px"""
    height: int
    """px"""
