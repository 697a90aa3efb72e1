"""Small tags beside boxes, where they hide as little as can be."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from errors import printable
from report.palette import ink_on

Area = tuple[float, float, float, float]
"""x1 y1 x2 y2, px"""
OTHER_TAG = 4.0
"""How much worse it is to cover a tag than a box"""


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
    taken: list[Area] = []
    for place, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        text = printable(text, 60)
        if not text:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        size = (right - left + 4, bottom + 2)
        others = [*boxes[:place], *boxes[place + 1 :]]
        x, y = _best_place(boxes[place], size, canvas.size, others, taken, gap_px)
        pen.rectangle((x, y, x + size[0], y + size[1]), fill=colour)
        pen.text((x + 2 - left, y), text, fill=ink_on(colour), font=font)
        taken.append((x, y, x + size[0], y + size[1]))


def _best_place(
    box: Area,
    size: tuple[float, float],
    canvas: tuple[int, int],
    others: Sequence[Area],
    taken: Sequence[Area],
    gap_px: int,
) -> tuple[float, float]:
    """Upper left corner of a tag: outside of its box if the picture has room for it there."""
    x1, y1, x2, y2 = box
    width, height = size
    right, bottom = canvas[0] - width - 1, canvas[1] - height - 1
    along = [min(max(0.0, x), max(0.0, right)) for x in (x1, x2 - width, (x1 + x2 - width) / 2)]
    outside = [
        *((x, y1 - height - 1) for x in along),
        *((x, y2 + 1) for x in along),
        *((x2 + 1, y) for y in (y1, y2 - height)),
        *((x1 - width - 1, y) for y in (y1, y2 - height)),
    ]
    free = [(x, y) for x, y in outside if 0 <= x <= right and 0 <= y <= bottom]
    if not free:
        inside = (x1 + gap_px, y1 + gap_px)
        return max(0.0, min(inside[0], right)), max(0.0, min(inside[1], bottom))

    def hidden(corner: tuple[float, float]) -> float:
        own = (*corner, corner[0] + width, corner[1] + height)
        return sum(_shared(own, area) for area in others) + OTHER_TAG * sum(
            _shared(own, area) for area in taken
        )

    return min(free, key=hidden)


def _shared(one: Area, two: Area) -> float:
    """px^2"""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, width) * max(0.0, height)
