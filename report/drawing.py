"""Boxes drawn on images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.batch import Batch
from data.boxes import to_corners
from data.feed.collate import absolute
from data.objects import Objects
from errors import printable

TRUTH = (60, 220, 60)
COLOURS = [
    (255, 70, 70),
    (70, 140, 255),
    (255, 190, 0),
    (220, 80, 255),
    (0, 210, 210),
    (255, 130, 40),
]
MIN_SIDE_PX = 320
"""Small images are enlarged to this, so that labels can be read"""


def draw_objects(
    image: np.ndarray, objects: Objects, labels: Sequence[str], truth: Objects | None = None
) -> Image.Image:
    """Draw objects, boxes xywh in px, with their labels on uint8 [H, W, 3].

    Args:
        labels: one an object; "" for none. truth: drawn first, thin and green.
    """
    scale = max(1.0, MIN_SIDE_PX / max(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(max(width, height) / 400))
    font = ImageFont.load_default(size=max(11, round(max(width, height) / 50)))
    for box in [] if truth is None else _corners(truth, scale):
        pen.rectangle(box, outline=TRUTH, width=max(1, line // 2))
    for box, label, kind in zip(_corners(objects, scale), labels, objects.classes, strict=True):
        colour = COLOURS[int(kind) % len(COLOURS)]
        x1, y1, x2, y2 = box
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


def save_grid(images: Sequence[Image.Image], file: Path, columns: int = 4, gap_px: int = 6) -> None:
    """Write images as one picture, row by row."""
    columns = min(columns, len(images))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    cell = max(image.width for image in images)
    heights = [max(image.height for image in row) for row in rows]
    size = (columns * (cell + gap_px) + gap_px, sum(heights) + gap_px * (len(rows) + 1))
    canvas = Image.new("RGB", size, (32, 32, 32))
    y = gap_px
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            canvas.paste(image, (gap_px + column * (cell + gap_px), y))
        y += height + gap_px
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(file)


def draw_batch(batch: Batch, names: Sequence[str], file: Path) -> None:
    """Draw a batch as the model gets it: augmented pixels, padding, boxes back from the targets."""
    images = []
    objects = batch.objects.each(lambda column: column.cpu().numpy())
    for row, (pixels, mask) in enumerate(zip(batch.pixel_values, batch.pixel_mask, strict=True)):
        height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        own = objects.of_image(row)
        sides = np.array([width, height, width, height])
        own = replace(own, boxes=absolute(own.boxes, sides))
        image = pixels.permute(1, 2, 0).cpu().numpy()
        images.append(draw_objects(image, own, [names[c] for c in own.classes]))
    save_grid(images, file)


def _corners(objects: Objects, scale: float) -> list[tuple[float, float, float, float]]:
    """x1 y1 x2 y2 of the boxes, px of an image that is enlarged by `scale`."""
    boxes = objects.boxes * scale
    boxes[:, 2:] = boxes[:, 2:].clip(0)
    return [tuple(corners) for corners in to_corners(boxes).tolist()]
