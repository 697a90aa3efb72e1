"""The picture of `tools.check_data`: classes, box sizes, and samples with their boxes."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from data.build import Data
from data.check.doctor import readable_places, splits_of
from data.check.statistics import LARGE_PX2, SMALL_PX2, resized_boxes
from data.findings import IMAGE_KINDS, Finding
from data.images.decode import decode
from data.schema import Split
from errors import UserError, printable
from report.drawing import COLOURS as CLASS_COLOURS
from report.drawing import draw_objects
from settings.keys import ImageSizeConfig

PICTURE_TITLE = "Dataset as checked by permafrost"
"""Stands in the file, by which an earlier picture is known"""
WIDTH_PX = 1312
CHART_PX = (640, 330)
CELL_PX = 320
COLUMNS, ROWS = 4, 3
MOST_CLASSES = 12
MOST_LABELS = 8
"""In an image with more boxes than this, class names would hide it"""
COLOURS = {"train": (70, 140, 255), "val": (255, 150, 40)}
PAPER, INK, GREY = (255, 255, 255), (30, 30, 30), (170, 170, 170)


def draw_dataset(
    file: Path, data: Data, findings: Collection[Finding], size: ImageSizeConfig
) -> None:
    """Write the picture.

    Args:
        findings: images that cannot be decoded are known from them.

    Raises:
        UserError: if the file cannot be written.
    """
    splits = splits_of(data)
    samples = _samples(splits, data, findings)
    rows = [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
    heights = [max(image.height for _, image in row) + 30 for row in rows]
    canvas = Image.new("RGB", (WIDTH_PX, CHART_PX[1] + 30 + sum(heights)), PAPER)
    canvas.paste(_class_chart(splits, data.taxonomy.names), (8, 8))
    canvas.paste(_size_chart(splits, size), (WIDTH_PX // 2 + 8, 8))
    pen = ImageDraw.Draw(canvas)
    y = CHART_PX[1] + 30
    for row, height in zip(rows, heights, strict=True):
        for column, (title, image) in enumerate(row):
            x = 8 + column * (CELL_PX + 5)
            pen.text((x, y), _fitting(title, CELL_PX), fill=INK, font=_font(13))
            canvas.paste(image, (x, y + 18))
        y += height
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        information = PngInfo()
        information.add_text("Title", PICTURE_TITLE)
        canvas.save(file, "PNG", pnginfo=information)
    except OSError as error:
        raise UserError(f"--picture {file}: cannot be written: {error.strerror}") from error


def _samples(
    splits: dict[str, Split], data: Data, findings: Collection[Finding]
) -> list[tuple[str, Image.Image]]:
    """Random images of all splits, always the same ones, with their boxes; and their names."""
    lost = {f.image for f in findings if f.kind in IMAGE_KINDS}
    places = [place for place in readable_places(splits) if place not in lost]
    chosen = np.random.default_rng(0).permutation(len(places))[: COLUMNS * ROWS]
    samples = []
    for name, index in (places[i] for i in sorted(chosen)):
        record = splits[name].records[index]
        pixels = Image.fromarray(decode(splits[name].images[index], record.where))
        scale = CELL_PX / max(pixels.size)
        sides = tuple(max(1, round(side * scale)) for side in pixels.size)
        small = np.asarray(pixels.resize(sides, Image.Resampling.BILINEAR))  # type: ignore[arg-type]
        objects = record.objects.scaled(scale, scale)
        few = len(objects) <= MOST_LABELS
        labels = [data.taxonomy.names[c] if few else "" for c in objects.classes]
        title = printable(f"{name}: {Path(record.where).name}, boxes: {len(objects)}")
        samples.append((title, draw_objects(small, objects, labels)))
    return samples


def _class_chart(splits: dict[str, Split], names: tuple[str, ...]) -> Image.Image:
    """Horizontal bars: boxes by class, the most frequent first, one bar per split."""
    counts = {
        name: np.bincount(split.objects.classes, minlength=len(names))
        for name, split in splits.items()
    }
    order = np.argsort(-sum(counts.values()), kind="stable")[:MOST_CLASSES]
    title = "Boxes by class"
    if len(names) > len(order):
        title += f": the {len(order)} most frequent of {len(names)}"
    image, pen = _chart(title, list(splits))
    left, top, right = 170, 40, CHART_PX[0] - 70
    step = min(44.0, (CHART_PX[1] - top - 8) / len(order))
    most = max(int(c[order].max()) for c in counts.values()) or 1
    for row, kind in enumerate(order):
        y = top + row * step
        middle = y + step / 2 - 2
        colour = CLASS_COLOURS[kind % len(CLASS_COLOURS)]
        pen.rectangle((left - 12, middle - 4, left - 4, middle + 4), fill=colour)
        name = _fitting(printable(names[kind], 60), left - 24)
        pen.text((left - 18, middle), name, fill=INK, font=_font(14), anchor="rm")
        thick = (step - 4) / len(counts)
        for bar, (split, values) in enumerate(counts.items()):
            x, low = left + (right - left) * int(values[kind]) / most, y + bar * thick
            pen.rectangle((left, low, x, low + thick - 1), fill=COLOURS[split])
            font = _font(max(9, min(12, round(thick))))
            pen.text(
                (x + 4, low + thick / 2), f"{values[kind]:,}", fill=INK, font=font, anchor="lm"
            )
    return image


def _size_chart(splits: dict[str, Split], size: ImageSizeConfig) -> Image.Image:
    """Share of boxes by side (root of the area) in the resized image, on a logarithmic axis."""
    image, pen = _chart(f"Box side, px, after the resize to {size.longest}", list(splits))
    edges = np.exp2(np.arange(0, np.log2(size.longest) + 0.5, 0.5))
    sides = {
        name: np.sqrt(np.prod(resized_boxes(split, size)[:, :2], axis=1))
        for name, split in splits.items()
    }
    shares = {
        name: np.histogram(s.clip(edges[0], edges[-1]), edges)[0] / max(len(s), 1)
        for name, s in sides.items()
    }
    most = max(float(s.max(initial=0)) for s in shares.values()) or 1.0
    left, top, bottom, right = 30, 60, CHART_PX[1] - 30, CHART_PX[0] - 20
    step = (right - left) / (len(edges) - 1)
    for limit, word in ((SMALL_PX2, "small"), (LARGE_PX2, "medium")):
        x = left + step * 2 * np.log2(np.sqrt(limit))
        if x < right:
            pen.line((x, top - 18, x, bottom), fill=GREY)
            pen.text((x - 4, top - 20), word, fill=INK, font=_font(12), anchor="ra")
            if word == "medium":
                pen.text((x + 4, top - 20), "large", fill=INK, font=_font(12))
    for number in range(len(edges) - 1):
        thick = (step - 4) / len(shares)
        for bar, (name, values) in enumerate(shares.items()):
            x = left + number * step + 2 + bar * thick
            high = bottom - (bottom - top) * values[number] / most
            pen.rectangle((x, high, x + thick - 1, bottom), fill=COLOURS[name])
    pen.line((left, bottom, right, bottom), fill=INK)
    for number in range(0, len(edges), 2):
        x = left + number * step
        pen.text((x, bottom + 4), f"{edges[number]:.0f}", fill=INK, font=_font(12), anchor="ma")
    pen.text((left, top - 20), f"{most:.0%}", fill=INK, font=_font(12), anchor="ra")
    return image


def _chart(title: str, splits: list[str]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", CHART_PX, PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((4, 4), title, fill=INK, font=_font(17))
    x = CHART_PX[0] - 70 * len(splits)
    for name in splits:
        pen.rectangle((x, 8, x + 12, 20), fill=COLOURS[name])
        pen.text((x + 17, 5), name, fill=INK, font=_font(14))
        x += 70
    return image, pen


def _fitting(text: str, width_px: int) -> str:
    while len(text) > 1 and _font(14).getlength(text) > width_px:
        text = f"{text[:-2]}…"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
