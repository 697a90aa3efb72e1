"""Small tags beside boxes, where they hide as little as can be."""

from collections.abc import Iterator, Sequence

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
    taken: list[Area] = []
    for place, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        text = printable(text, 60).replace(" ", WORD_GAP)
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
    """Upper left corner of a tag: outside of its box if the picture has room for it there, where it hides little."""
    width, height = size
    right, bottom = canvas[0] - width - 1, canvas[1] - height - 1
    # What a box lies in is hidden wherever its tag stands; nobody wants it far from its box for that.
    others = [area for area in others if _shared(box, area) < ENCLOSED * _shared(box, box)]
    found = list(_places(box, size, right, gap_px))
    free = [(x, y, cost) for x, y, cost in found if 0 <= x <= right and 0 <= y <= bottom]
    if not free:
        return max(0.0, min(box[0] + gap_px, right)), max(0.0, min(box[1] + gap_px, bottom))

    def bad(place: tuple[float, float, float]) -> float:
        x, y, cost = place
        own = (x, y, x + width, y + height)
        return (
            cost * width * height
            + sum(_hidden(own, area) for area in others)
            + OTHER_TAG * sum(_shared(own, area) for area in taken)
        )

    x, y, _ = min(free, key=bad)
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


def _hidden(tag: Area, area: Area) -> float:
    """px^2 that a tag hides of something, more where these are most of it."""
    shared = _shared(tag, area)
    if not shared:
        return 0.0
    whole = _shared(tag, tag)
    return shared + whole * shared / max(min(whole, _shared(area, area)), 1.0)


def _shared(one: Area, two: Area) -> float:
    """px^2"""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, width) * max(0.0, height)
