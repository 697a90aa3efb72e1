"""Boxes, masks and regions drawn on images."""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.batch import Batch
from data.boxes import to_corners
from data.feed.collate import absolute
from data.masks import CELL_PIXELS, CELL_PX, Mask, encode, mask_column, pixels_of
from data.objects import Objects
from errors import printable
from settings.tasks import EVERY_PIXEL, Labels

TRUTH = (60, 220, 60)
COLOURS = [
    (255, 70, 70),
    (70, 140, 255),
    (255, 190, 0),
    (220, 80, 255),
    (0, 210, 210),
    (255, 130, 40),
]
GROUND = (32, 32, 32)
"""Colour around images"""
GOLDEN_ANGLE = 0.381966
"""Part of a circle"""
TINT = 0.45
"""Share of its class's colour in the pixels of a mask"""
MIN_SIDE_PX = 320
"""Small images are enlarged to this, so that labels can be read"""
MIN_LINE_PX = 26
"""Height of a line of a legend; more below large pictures"""


def colour_of(kind: int) -> tuple[int, int, int]:
    """RGB of a class; beyond COLOURS, hues a golden angle apart in two brightnesses."""
    if kind < len(COLOURS):
        return COLOURS[kind]
    hue = (kind * GOLDEN_ANGLE) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(
        hue, 0.55 + 0.4 * (kind % 2), 1.0 - 0.35 * (kind % 3) / 2
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def beside(images: Sequence[Image.Image], gap_px: int = 3) -> Image.Image:
    """Pictures of one height side by side."""
    width = sum(image.width for image in images) + gap_px * (len(images) - 1)
    canvas = Image.new("RGB", (width, images[0].height), GROUND)
    x = 0
    for image in images:
        canvas.paste(image, (x, 0))
        x += image.width + gap_px
    return canvas


def draw_objects(
    image: np.ndarray,
    objects: Objects,
    labels: Sequence[str] | None = None,
    truth: Objects | None = None,
) -> Image.Image:
    """Draw objects, boxes xywh in px, with their labels on uint8 [H, W, 3].

    Args:
        labels: one an object; None where a legend says what colours are. truth: drawn first, thin and green.
    """
    scale = max(1.0, MIN_SIDE_PX / max(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    if objects.masks is not None:
        canvas = _with_masks(np.array(canvas), objects, truth)
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(max(width, height) / 400))
    font = ImageFont.load_default(size=max(11, round(max(width, height) / 50)))
    edges = truth if truth is not None and objects.masks is None else Objects.none()
    for box in _corners(edges, scale):
        pen.rectangle(box, outline=TRUTH, width=max(1, line // 2))
    labels = [""] * len(objects) if labels is None else labels
    for box, label, kind in zip(_corners(objects, scale), labels, objects.classes, strict=True):
        colour = colour_of(int(kind))
        x1, y1, x2, y2 = box
        if objects.masks is None:
            pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        label = printable(label, 60)
        if label:
            left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
            w, h = right - left + 6, bottom + 4
            x = min(max(0.0, x1), max(0.0, width - w))
            y = y1 - h if y1 >= h else min(y2, height - h)
            pen.rectangle((x, y, x + w, y + h), fill=colour)
            pen.text((x + 3, y + 1), label, fill="white", font=font)
    return canvas


def _with_masks(pixels: np.ndarray, objects: Objects, truth: Objects | None) -> Image.Image:
    """The picture, uint8 [H, W, 3], with tinted masks, and edges of the true ones."""
    size = (pixels.shape[0], pixels.shape[1])
    places = [pixels_of(mask, size) for mask in objects.masks]
    # Large ones first: a part of something is drawn over it.
    for place in sorted(range(len(places)), key=lambda place: -len(places[place][0])):
        mask, (rows, columns) = objects.masks[place], places[place]
        colour = np.array(colour_of(int(objects.classes[place])))
        tinted = (1 - TINT) * pixels[rows, columns] + TINT * colour
        pixels[rows, columns] = tinted.astype(np.uint8)
        rows, columns = _edge(mask, size)
        pixels[rows, columns] = colour
    for mask in [] if truth is None or truth.masks is None else truth.masks:
        rows, columns = _edge(mask, size)
        pixels[rows, columns] = TRUTH
    return Image.fromarray(pixels)


def _edge(mask: Mask, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a mask's pixels that have one of their four neighbours outside of it."""
    rows, columns = pixels_of(mask, size)
    plane = np.zeros((size[0] + 2, size[1] + 2), bool)
    plane[rows + 1, columns + 1] = True
    inner = plane[:-2, 1:-1] & plane[2:, 1:-1] & plane[1:-1, :-2] & plane[1:-1, 2:]
    rows, columns = np.nonzero(plane[1:-1, 1:-1] & ~inner)
    return rows, columns


def save_grid(
    images: Sequence[Image.Image],
    file: Path,
    columns: int = 4,
    gap_px: int = 6,
    legend: Mapping[int, str] | None = None,
    note: str = "",
) -> None:
    """Write images as one picture, row by row.

    Args:
        legend and note: as `with_legend` has them.
    """
    columns = min(columns, len(images))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    cell = max(image.width for image in images)
    heights = [max(image.height for image in row) for row in rows]
    size = (columns * (cell + gap_px) + gap_px, sum(heights) + gap_px * (len(rows) + 1))
    canvas = Image.new("RGB", size, GROUND)
    y = gap_px
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            canvas.paste(image, (gap_px + column * (cell + gap_px), y))
        y += height + gap_px
    canvas = with_legend(canvas, legend or {}, note)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(file)


def legend_of(names: Sequence[str], tables: Iterable[Objects]) -> dict[int, str]:
    """Names by class of what is in the tables, in the order of classes: of hundreds few are on a picture."""
    return {kind: names[kind] for kind in sorted({int(c) for t in tables for c in t.classes})}


def with_legend(picture: Image.Image, legend: Mapping[int, str], note: str = "") -> Image.Image:
    """The picture with a patch of colour and a name for each class below it.

    Tags on regions, which touch each other everywhere, would hide one another and what they name.

    Args:
        legend: names by class. note: told behind them.
    """
    if not legend:
        return picture
    line_px = max(MIN_LINE_PX, max(picture.size) // 60)
    font = ImageFont.load_default(size=line_px * 0.65)
    measure = ImageDraw.Draw(picture)
    places, x, y = [], 0.0, 0
    texts: dict[int | None, str] = {kind: printable(name, 40) for kind, name in legend.items()}
    texts |= {None: note} if note else {}
    for text in texts.values():
        width = 2 * line_px + measure.textlength(text, font=font)
        if x and x + width > picture.width:
            x, y = 0.0, y + line_px
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (picture.width, picture.height + y + line_px), GROUND)
    canvas.paste(picture, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for (kind, text), (x, y) in zip(texts.items(), places, strict=True):
        top = picture.height + y
        patch = (x + 6, top + line_px // 6, x + line_px, top + line_px - line_px // 4)
        if kind is not None:
            pen.rectangle(patch, fill=colour_of(kind))
        pen.text((x + line_px + 5, top + line_px // 13), text, fill="white", font=font)
    return canvas


def draw_batch(batch: Batch, names: Sequence[str], file: Path, labels: Labels = "boxes") -> None:
    """Draw a batch as the model gets it: augmented pixels, padding, boxes back from the targets."""
    images, tables = [], []
    objects = batch.objects.each(lambda column: column.cpu().numpy())
    for row, (pixels, mask) in enumerate(zip(batch.pixel_values, batch.pixel_mask, strict=True)):
        height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        own = objects.of_image(row)
        sides = np.array([width, height, width, height])
        own = replace(own, boxes=absolute(own.boxes, sides))
        if own.masks is not None:
            own = replace(own, masks=mask_column([_of_cells(cells) for cells in own.masks]))
        image = pixels.permute(1, 2, 0).cpu().numpy()
        tags = None if labels in EVERY_PIXEL else [names[c] for c in own.classes]
        images.append(draw_objects(image, own, tags))
        tables.append(own)
    save_grid(images, file, legend=legend_of(names, tables) if labels in EVERY_PIXEL else None)


def _of_cells(cells: np.ndarray) -> Mask:
    """What is covered for at least half, uint8 [H/4, W/4], as the model gets it."""
    half = cells >= CELL_PIXELS // 2
    return encode(half.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1))


def _corners(objects: Objects, scale: float) -> list[tuple[float, float, float, float]]:
    """x1 y1 x2 y2 of the boxes, px of an image that is enlarged by `scale`."""
    boxes = objects.boxes * scale
    boxes[:, 2:] = boxes[:, 2:].clip(0)
    return [tuple(corners) for corners in to_corners(boxes).tolist()]
