"""Masks as vertical strips: what of them is in a window, and where that is on the whole image, without drawing any."""

from dataclasses import dataclass

import numpy as np

from data.masks import Mask, Polygons, Rle, filled_runs, rle_of_runs, to_rle


@dataclass(frozen=True)
class Strips:
    """The pixels of a mask, as runs that lie in one column each; column by column, from the top down."""

    column: np.ndarray
    """int64 [n], px"""
    top: np.ndarray
    """int64 [n]: first row, px"""
    bottom: np.ndarray
    """int64 [n]: row after the last, px"""

    @staticmethod
    def of(mask: Mask, size: tuple[int, int]) -> "Strips":
        """Of a mask on the picture made `size` (height, width)."""
        first, length = filled_runs(to_rle(mask, size))
        height, end = size[0], first + length
        left = first // height
        num = (end - 1) // height - left + 1  # columns that a run is in
        before = np.cumsum(num) - num
        column = np.repeat(left - before, num) + np.arange(int(num.sum()))
        top = np.maximum(np.repeat(first, num) - column * height, 0)
        bottom = np.minimum(np.repeat(end, num) - column * height, height)
        return Strips(column, top, bottom)

    @property
    def pixels(self) -> int:
        """How many there are."""
        return int((self.bottom - self.top).sum())

    def within(self, window: np.ndarray) -> "Strips":
        """What of them is in a window, in its pixels.

        Args:
            window: int64 [4]: x, y, width, height.
        """
        x, y, width, height = window.tolist()
        column = self.column - x
        top, bottom = np.maximum(self.top - y, 0), np.minimum(self.bottom - y, height)
        kept = (top < bottom) & (column >= 0) & (column < width)
        return Strips(column[kept], top[kept], bottom[kept])

    def moved(self, x: int, y: int) -> "Strips":
        """The same, `x` px further to the right and `y` px further down."""
        return Strips(self.column + x, self.top + y, self.bottom + y)

    def corners(self) -> np.ndarray:
        """float64 [4]: xyxy around them, px; all 0 without pixels."""
        if not len(self.column):
            return np.zeros(4)
        low = (self.column[0], self.top.min())
        return np.array([*low, self.column[-1] + 1, self.bottom.max()], np.float64)

    def rle(self, size: tuple[int, int]) -> Rle:
        """As the run lengths of a picture of `size` (height, width) that they lie in."""
        first, end = self.column * size[0] + self.top, self.column * size[0] + self.bottom
        apart = first[1:] > end[:-1]  # or a run goes on at the top of the next column
        begins, ends = np.append([True], apart)[: len(first)], np.append(apart, [True])[: len(end)]
        return rle_of_runs(first[begins], end[ends], size)


def cut_out(mask: Mask, size: tuple[int, int], window: np.ndarray) -> Mask:
    """The part of a mask in a window, on a picture of the window alone. Polygons that are whole in it stay such.

    Args:
        size: (height, width) of the image, px. window: int64 [4]: x, y, width, height, px of the image.
    """
    x, y, width, height = window.tolist()
    if isinstance(mask, Polygons):
        mask = mask.stretched(size)
        rings = tuple(ring - np.array([x, y]) for ring in mask.rings)
        points = np.concatenate(rings)
        if (points >= 0).all() and (points <= (width, height)).all():
            return Polygons((height, width), rings)
    return Strips.of(mask, size).within(window).rle((height, width))


def put_back(mask: Rle, size: tuple[int, int], window: np.ndarray) -> Rle:
    """The mask of a window on its image; arguments as of `cut_out`."""
    x, y, width, height = window.tolist()
    if (height, width) == size:
        return mask
    return Strips.of(mask, (height, width)).moved(x, y).rle(size)
