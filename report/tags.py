"""Small tags beside boxes, where they hide as little as can be."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from errors import printable
from report.palette import ink_on

Area = tuple[float, float, float, float]
"""x1 y1 x2 y2, px"""
WORD_GAP = "  "
"""Between words: one space of the font is too narrow in small sizes"""
ROWS = 4
"""Of places above and below a box, each further off"""
ENCLOSED = 0.9
"""Part of a box from which on it lies in another one"""
OTHER_TAG = 50.0
"""How much worse it is to cover a tag than a box"""
FURTHER, INSIDE = 0.3, 1.0
"""How much worse a place is that is a row further off, or inside of its own box, in parts of the tag"""


def draw_tags(
    canvas: Image.Image,
    boxes: Sequence[Area],
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    gap_px: int,
) -> None:
    """Write a text beside each box that has one, on its colour.

    Args:
        gap_px: width of the boxes' lines.
    """
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10, round(max(canvas.size) / 60)))
    areas = np.array(boxes, np.float64).reshape(-1, 4)
    taken = np.zeros((0, 4))
    for place, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        text = printable(text, 60).replace(" ", WORD_GAP)
        if not text:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        size = (right - left + 4, bottom + 2)
        others = np.delete(areas, place, axis=0)
        x, y = _best_place(boxes[place], size, canvas.size, others, taken, gap_px)
        own = (x, y, x + size[0], y + size[1])
        pen.rectangle(own, fill=colour)
        pen.text((x + 2 - left, y), text, fill=ink_on(colour), font=font)
        taken = np.append(taken, [own], axis=0)


def _best_place(
    box: Area,
    size: tuple[float, float],
    canvas: tuple[int, int],
    others: np.ndarray,
    taken: np.ndarray,
    gap_px: int,
) -> tuple[float, float]:
    """Upper left corner of a tag: outside of its box if the picture has room for it there, where it hides little.

    Args:
        others, taken: float64 [n, 4]: other boxes, and tags, as `Area`.
    """
    width, height = size
    right, bottom = canvas[0] - width - 1, canvas[1] - height - 1
    # What a box lies in is hidden wherever its tag stands; nobody wants it far from its box for that.
    itself = np.array([box], np.float64)
    others = others[_shared(itself, others)[0] < ENCLOSED * _shared(itself, itself)[0, 0]]
    found = list(_places(box, size, right, gap_px))
    free = np.array([(x, y, cost) for x, y, cost in found if 0 <= x <= right and 0 <= y <= bottom])
    if not len(free):
        return max(0.0, min(box[0] + gap_px, right)), max(0.0, min(box[1] + gap_px, bottom))
    corners = free[:, :2]
    own = np.concatenate([corners, corners + [width, height]], axis=1)
    bad = free[:, 2] * width * height + _hidden(own, others).sum(1)
    bad += OTHER_TAG * _shared(own, taken).sum(1)
    x, y = corners[int(bad.argmin())].tolist()
    return x, y


def _places(
    box: Area, size: tuple[float, float], right: float, gap_px: int
) -> Iterator[tuple[float, float, float]]:
    """(x, y, how bad it is in itself): around the box, further off, and inside of it."""
    x1, y1, x2, y2 = box
    width, height = size
    along = [min(max(0.0, x), max(0.0, right)) for x in (x1, x2 - width, (x1 + x2 - width) / 2)]
    for row in range(ROWS):
        away = row * (height + 2)
        for x in along:
            yield x, y1 - height - 1 - away, FURTHER * row
            yield x, y2 + 1 + away, FURTHER * row
            yield x, y1 + gap_px + away, INSIDE + FURTHER * row
            yield x, y2 - gap_px - height - away, INSIDE + FURTHER * row
    for y in (y1, y2 - height, (y1 + y2 - height) / 2):
        yield x2 + 1, y, 0.0
        yield x1 - width - 1, y, 0.0


def _hidden(tags: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """float64 [m, n]: px^2 that each tag hides of each area, more where these are most of it."""
    shared = _shared(tags, areas)
    whole = (tags[:, 2:] - tags[:, :2]).prod(1)[:, None]
    own = (areas[:, 2:] - areas[:, :2]).clip(0).prod(1)
    return shared + whole * shared / np.minimum(whole, own).clip(1)


def _shared(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [m, n]: px^2 that [m, 4] and [n, 4] share."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(0).prod(2)
