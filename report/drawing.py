"""Boxes, masks and regions drawn on images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from data.batch import Batch
from data.boxes import to_corners
from data.feed.collate import absolute
from data.masks import CELL_PIXELS, CELL_PX, Mask, encode, mask_column, pixels_of
from data.objects import Objects
from errors import printable
from report.palette import GROUND, TRUTH, colour_of
from report.tags import Area, draw_tags
from settings.tasks import EVERY_PIXEL, Labels

TINT = 0.45
"""Share of its class's colour in the pixels of a mask"""
MIN_SIDE_PX = 320
"""Small images are enlarged to this, so that labels can be read"""
MIN_LINE_PX = 26
"""Height of a line of a legend; more below large pictures"""
MOST_TAGS = 12
"""On an image with more objects, the legend says what they are"""


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
    canvas, scale, line = _enlarged(image)
    if objects.masks is not None:
        canvas = _with_masks(np.array(canvas), objects, truth)
    pen = ImageDraw.Draw(canvas)
    edges = truth if truth is not None and objects.masks is None else Objects.none()
    for box in _corners(edges, scale):
        pen.rectangle(box, outline=TRUTH, width=max(1, line // 2))
    corners = _corners(objects, scale)
    colours = [colour_of(int(kind)) for kind in objects.classes]
    if objects.masks is None:
        for box, colour in zip(corners, colours, strict=True):
            pen.rectangle(box, outline=colour, width=line)
    if labels is not None:
        places = _tagged(objects, corners, (canvas.height, canvas.width))
        draw_tags(canvas, places, labels, colours, line)
    return canvas


def draw_outlines(
    image: np.ndarray,
    layers: Sequence[tuple[Objects, Sequence[tuple[int, int, int]], Sequence[str]]],
) -> Image.Image:
    """Draw the outlines of objects alone, in given colours, on uint8 [H, W, 3].

    Args:
        layers: objects with a colour and a text each; those of the first layer are thin.
    """
    canvas, scale, line = _enlarged(image)
    size = (canvas.height, canvas.width)
    corners: list[Area] = []
    texts: list[str] = []
    inks: list[tuple[int, int, int]] = []
    for number, (objects, colours, own_texts) in enumerate(layers):
        own = _corners(objects, scale)
        if objects.masks is not None:
            pixels = np.array(canvas)
            for mask, colour in zip(objects.masks, colours, strict=True):
                pixels[_edge(mask, size)] = colour
            canvas = Image.fromarray(pixels)
        else:
            pen = ImageDraw.Draw(canvas)
            for box, colour in zip(own, colours, strict=True):
                pen.rectangle(box, outline=colour, width=line if number else max(1, line // 2))
        corners += _tagged(objects, own, size)
        texts += own_texts
        inks += colours
    draw_tags(canvas, corners, texts, inks, line)
    return canvas


def _enlarged(image: np.ndarray) -> tuple[Image.Image, float, int]:
    """The picture, at least MIN_SIDE_PX long; how much that enlarges it; the width of lines, px."""
    scale = max(1.0, MIN_SIDE_PX / max(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return canvas, scale, max(2, round(max(width, height) / 400))


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


def _tagged(objects: Objects, corners: list[Area], size: tuple[int, int]) -> list[Area]:
    """Beside what tags stand: the boxes, or of each mask the box of its largest piece, px of a picture of this `size`.

    The box of a mask of scattered pieces may have its edges where nothing is.
    """
    if objects.masks is None:
        return corners
    places = []
    for mask, corner in zip(objects.masks, corners, strict=True):
        rows, columns = pixels_of(mask, size)
        if not len(rows):
            places.append(corner)
            continue
        top, left = int(rows.min()), int(columns.min())
        plane = np.zeros((rows.max() - top + 1, columns.max() - left + 1), bool)
        plane[rows - top, columns - left] = True
        pieces, _ = ndimage.label(plane)
        largest = int(np.bincount(pieces.ravel())[1:].argmax())
        y, x = ndimage.find_objects(pieces)[largest]
        places.append((left + x.start, top + y.start, left + x.stop - 1, top + y.stop - 1))
    return places


def _edge(mask: Mask, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a mask's pixels that have one of their four neighbours outside of it."""
    rows, columns = pixels_of(mask, size)
    plane = np.zeros((size[0] + 2, size[1] + 2), bool)
    plane[rows + 1, columns + 1] = True
    inner = plane[:-2, 1:-1] & plane[2:, 1:-1] & plane[1:-1, :-2] & plane[1:-1, 2:]
    rows, columns = np.nonzero(plane[1:-1, 1:-1] & ~inner)
    return rows, columns


def titled(image: Image.Image, title: str) -> Image.Image:
    """The picture below a line that says what it is, cut off at its end where it is too long."""
    line_px = max(18, round(max(image.size) / 34))
    font = ImageFont.load_default(size=line_px * 0.65)
    canvas = Image.new("RGB", (image.width, image.height + line_px), GROUND)
    canvas.paste(image, (0, line_px))
    text = printable(title)
    while len(text) > 2 and font.getlength(text) > image.width - 6:
        text = f"{text[:-2]}…"
    ImageDraw.Draw(canvas).text((3, line_px * 0.12), text, fill="white", font=font)
    return canvas


def save_grid(
    images: Sequence[Image.Image],
    file: Path,
    columns: int = 4,
    gap_px: int = 6,
    legend: Mapping[int, str] | None = None,
    note: str = "",
    titles: Sequence[str] | None = None,
    colours: Callable[[int], tuple[int, int, int]] = colour_of,
) -> None:
    """Write images as one picture, row by row.

    Args:
        columns: of images that have the usual width.
        legend, note and colours: as `with_legend` has them. titles: what stands above each image.
    """
    if titles is not None:
        images = [titled(image, title) for image, title in zip(images, titles, strict=True)]
    rows = _rows_of(images, columns, gap_px)
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width + gap_px for image in row) for row in rows) + gap_px
    canvas = Image.new("RGB", (width, sum(heights) + gap_px * (len(rows) + 1)), GROUND)
    y = gap_px
    for row, height in zip(rows, heights, strict=True):
        x = gap_px
        for image in row:
            canvas.paste(image, (x, y))
            x += image.width + gap_px
        y += height + gap_px
    canvas = with_legend(canvas, legend or {}, note, colours)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(file)


def _rows_of(images: Sequence[Image.Image], columns: int, gap_px: int) -> list[list[Image.Image]]:
    """Images in rows that are about as wide as `columns` of the usual ones: a few large ones make no others' cells
    larger."""
    usual = int(np.median([image.width for image in images])) + gap_px
    rows: list[list[Image.Image]] = []
    left = 0
    for image in images:
        over = image.width + gap_px - left
        if not rows or over > usual / 2 or (over > 0 and len(rows[-1]) >= columns):
            rows.append([])
            left = columns * usual
        rows[-1].append(image)
        left -= image.width + gap_px
    return rows


def legend_of(names: Sequence[str], tables: Iterable[Objects]) -> dict[int, str]:
    """Names by class of what is in the tables, in the order of classes: of hundreds few are on a picture."""
    return {kind: names[kind] for kind in sorted({int(c) for t in tables for c in t.classes})}


def with_legend(
    picture: Image.Image,
    legend: Mapping[int, str],
    note: str = "",
    colours: Callable[[int], tuple[int, int, int]] = colour_of,
) -> Image.Image:
    """The picture with a patch of colour and a name for each class below it.

    Tags on regions, which touch each other everywhere, would hide one another and what they name.

    Args:
        legend: names by class. note: told behind them. colours: by class.
    """
    if not legend and not note:
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
            pen.rectangle(patch, fill=colours(kind))
        pen.text((x + line_px + 5, top + line_px // 13), text, fill="white", font=font)
    return canvas


def draw_batch(
    batch: Batch,
    names: Sequence[str],
    file: Path,
    labels: Labels = "boxes",
    titles: Sequence[str] | None = None,
) -> None:
    """Draw a batch as the model gets it: augmented pixels, padding, boxes back from the targets.

    Args:
        titles: what stands above each image.
    """
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
        images.append(draw_objects(image, own, tags_of(own, names, labels)))
        tables.append(own)
    save_grid(images, file, legend=legend_of(names, tables), titles=titles)


def tags_of(objects: Objects, names: Sequence[str], labels: Labels) -> list[str] | None:
    """The class of each object, and the score where it has one; None where the legend alone says it."""
    if labels in EVERY_PIXEL or len(objects) > MOST_TAGS:
        return None
    texts = [names[c] for c in objects.classes]
    if objects.scores is None:
        return texts
    return [f"{text} {score:.2f}" for text, score in zip(texts, objects.scores, strict=True)]


def _of_cells(cells: np.ndarray) -> Mask:
    """What is covered for at least half, uint8 [H/4, W/4], as the model gets it."""
    half = cells >= CELL_PIXELS // 2
    return encode(half.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1))


def _corners(objects: Objects, scale: float) -> list[Area]:
    """x1 y1 x2 y2 of the boxes, px of an image that is enlarged by `scale`."""
    boxes = objects.boxes * scale
    boxes[:, 2:] = boxes[:, 2:].clip(0)
    return [tuple(corners) for corners in to_corners(boxes).tolist()]
