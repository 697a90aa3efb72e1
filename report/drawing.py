"""Boxes drawn on images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.feed.collate import Batch

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


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[int],
    truth: np.ndarray | None = None,
) -> Image.Image:
    """Draw xywh boxes, float [n, 4], with their labels on uint8 [H, W, 3].

    Args:
        classes: int [n], chooses the colours. truth: boxes drawn first, thin and green.
    """
    scale = max(1.0, MIN_SIDE_PX / max(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(max(width, height) / 400))
    font = ImageFont.load_default(size=max(11, round(max(width, height) / 50)))
    for box in truth if truth is not None else []:
        pen.rectangle(_corners(box * scale), outline=TRUTH, width=max(1, line // 2))
    for box, label, kind in zip(boxes, labels, classes, strict=True):
        colour = COLOURS[int(kind) % len(COLOURS)]
        x1, y1, x2, y2 = _corners(box * scale)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)
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
    for pixels, mask, label in zip(batch.pixel_values, batch.pixel_mask, batch.labels, strict=True):
        height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        boxes = label["boxes"].double().cpu().numpy() * [width, height, width, height]
        boxes[:, :2] -= boxes[:, 2:] / 2
        classes = label["class_labels"].tolist()
        image = pixels.permute(1, 2, 0).cpu().numpy()
        images.append(draw_boxes(image, boxes, [names[c] for c in classes], classes))
    save_grid(images, file)


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) for v in box)
    return x, y, x + max(w, 0.0), y + max(h, 0.0)
