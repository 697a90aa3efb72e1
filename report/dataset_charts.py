"""The charts of `tools.check_data`: what there is of each class, and of which size, one bar a split."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from errors import printable
from report.palette import colour_of

CHART_PX = (640, 330)
MOST_CLASSES = 12
COLOURS = {"train": (70, 140, 255), "val": (255, 150, 40)}
PAPER, INK, GREY = (255, 255, 255), (30, 30, 30), (170, 170, 170)


def class_chart(
    title: str,
    values: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[str]],
    names: Sequence[str],
    others: int = 0,
) -> Image.Image:
    """Horizontal bars by class, the largest first, one bar per split.

    Args:
        values: length of the bar of each class, [C + others], by split. texts: what stands beside it.
        names: of classes, and of what else has a bar. others: how many of the last ones are no classes; they
            stand below the classes, in black.
    """
    num = len(names) - others
    order = np.argsort(-sum(values.values())[:num], kind="stable")[: MOST_CLASSES - others]  # type: ignore
    if num > len(order):
        title += f": the {len(order)} most frequent of {num}"
    order = np.concatenate([order, np.arange(num, len(names))])
    image, pen = _chart(title, list(values))
    left, top, right = 170, 40, CHART_PX[0] - 70
    step = min(44.0, (CHART_PX[1] - top - 8) / len(order))
    most = max(float(v[order].max()) for v in values.values()) or 1
    for row, kind in enumerate(order.tolist()):
        y = top + row * step
        middle = y + step / 2 - 2
        colour = colour_of(kind) if kind < num else INK
        pen.rectangle((left - 12, middle - 4, left - 4, middle + 4), fill=colour)
        name = fitting(printable(names[kind], 60), left - 24)
        pen.text((left - 18, middle), name, fill=INK, font=font_of(14), anchor="rm")
        thick = (step - 4) / len(values)
        for bar, (split, lengths) in enumerate(values.items()):
            x, low = left + (right - left) * float(lengths[kind]) / most, y + bar * thick
            pen.rectangle((left, low, x, low + thick - 1), fill=COLOURS[split])
            font = font_of(max(9, min(12, round(thick))))
            text = texts[split][kind]
            pen.text((x + 4, low + thick / 2), text, fill=INK, font=font, anchor="lm")
    return image


def histogram(
    title: str,
    values: Mapping[str, np.ndarray],
    edges: np.ndarray,
    ticks: Sequence[tuple[int, str]],
    limits: Sequence[tuple[float, str, str]] = (),
) -> Image.Image:
    """Share of the values of each split between each two edges.

    Args:
        edges: rising; values beyond the first and the last one count to these. ticks: (place in edges, text)
            below the axis. limits: (place in edges, word left of it, word right of it) of lines.
    """
    image, pen = _chart(title, list(values))
    shares = {
        name: np.histogram(v.clip(edges[0], edges[-1]), edges)[0] / max(len(v), 1)
        for name, v in values.items()
    }
    most = max(float(s.max(initial=0)) for s in shares.values()) or 1.0
    left, top, bottom, right = 30, 60, CHART_PX[1] - 30, CHART_PX[0] - 20
    step = (right - left) / (len(edges) - 1)
    for place, before, after in limits:
        x = left + step * place
        if x < right:
            pen.line((x, top - 18, x, bottom), fill=GREY)
            pen.text((x - 4, top - 20), before, fill=INK, font=font_of(12), anchor="ra")
            pen.text((x + 4, top - 20), after, fill=INK, font=font_of(12))
    for number in range(len(edges) - 1):
        thick = (step - 4) / len(shares)
        for bar, (name, heights) in enumerate(shares.items()):
            x = left + number * step + 2 + bar * thick
            high = bottom - (bottom - top) * heights[number] / most
            pen.rectangle((x, high, x + thick - 1, bottom), fill=COLOURS[name])
    pen.line((left, bottom, right, bottom), fill=INK)
    for place, text in ticks:
        x = left + place * step
        pen.text((x, bottom + 4), text, fill=INK, font=font_of(12), anchor="ma")
    pen.text((left, top - 20), f"{most:.0%}", fill=INK, font=font_of(12), anchor="ra")
    return image


def _chart(title: str, splits: list[str]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", CHART_PX, PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((4, 4), title, fill=INK, font=font_of(17))
    x = CHART_PX[0] - 70 * len(splits)
    for name in splits:
        pen.rectangle((x, 8, x + 12, 20), fill=COLOURS[name])
        pen.text((x + 17, 5), name, fill=INK, font=font_of(14))
        x += 70
    return image, pen


def fitting(text: str, width_px: int) -> str:
    """`text`, cut off where it would be wider."""
    while len(text) > 1 and font_of(14).getlength(text) > width_px:
        text = f"{text[:-2]}…"
    return text


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
