"""The picture of `tools.check_data`: classes, sizes, and samples with what is annotated on them."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from data.check.doctor import readable_places, splits_of
from data.check.parts import drawn_parts, part_shares, pixel_statistics
from data.check.statistics import LARGE_PX2, SMALL_PX2, resized_boxes
from data.dataset import Data
from data.findings import IMAGE_KINDS, Finding
from data.images.decode import decode
from data.masks import nearest
from data.objects import Objects
from data.schema import Split
from errors import UserError, printable
from report.dataset_charts import (
    CHART_PX,
    INK,
    PAPER,
    class_chart,
    fitting,
    font_of,
    histogram,
)
from report.dataset_text import percent
from report.drawing import draw_objects
from report.thumbnails import name_of
from settings.keys import ImageSizeConfig
from settings.tasks import Labels

PICTURE_TITLE = "Dataset as checked by permafrost"
"""Stands in the file, by which an earlier picture is known"""
WIDTH_PX = 1312
CELL_PX = 320
COLUMNS, ROWS = 4, 3
SAMPLES_TOP_PX = CHART_PX[1] + 22
"""What is above of it is charts"""
MOST_LABELS = 8
"""In an image with more boxes than this, class names would hide it"""
UNITS: dict[Labels, str] = {
    **{"boxes": "boxes", "masks": "objects", "regions": "regions", "segments": "segments"}
}
IGNORED_LIGHT = 0.25
"""What is left of the brightness of ignored pixels"""
LEAST_SHARE = 1e-4
"""Of an image: smaller parts count as this large in the chart"""


def draw_dataset(
    file: Path,
    data: Data,
    findings: Collection[Finding],
    size: ImageSizeConfig,
    parts: Mapping[str, Objects] | None = None,
) -> None:
    """Write the picture.

    Args:
        findings: images that cannot be decoded are known from them.
        parts: where every pixel has a class, the regions or segments of each split (`data.check.parts`).

    Raises:
        UserError: if the file cannot be written.
    """
    splits = splits_of(data)
    samples = _samples(splits, data, findings)
    rows = [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
    heights = [max(image.height for _, image in row) + 30 for row in rows]
    canvas = Image.new("RGB", (WIDTH_PX, CHART_PX[1] + 30 + sum(heights)), PAPER)
    charts = _of_boxes(splits, data, size) if parts is None else _of_pixels(splits, data, parts)
    canvas.paste(charts[0], (8, 8))
    canvas.paste(charts[1], (WIDTH_PX // 2 + 8, 8))
    pen = ImageDraw.Draw(canvas)
    y = CHART_PX[1] + 30
    for row, height in zip(rows, heights, strict=True):
        for column, (title, image) in enumerate(row):
            x = 8 + column * (CELL_PX + 5)
            pen.text((x, y), fitting(title, CELL_PX), fill=INK, font=font_of(13))
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
    """Random images of all splits, always the same ones, with what is on them; and their names."""
    lost = {f.image for f in findings if f.kind in IMAGE_KINDS}
    places = [place for place in readable_places(splits) if place not in lost]
    chosen = np.random.default_rng(0).permutation(len(places))[: COLUMNS * ROWS]
    every_pixel = data.labels in ("regions", "segments")
    samples = []
    for name, index in (places[i] for i in sorted(chosen)):
        record = splits[name].records[index]
        pixels = Image.fromarray(decode(splits[name].images[index], record.where))
        scale = CELL_PX / max(pixels.size)
        sides = tuple(max(1, round(side * scale)) for side in pixels.size)
        small = np.array(pixels.resize(sides, Image.Resampling.BILINEAR))  # type: ignore[arg-type]
        objects = record.objects
        if every_pixel:
            objects, ignored = drawn_parts(record, data)
            small = _darkened(small, ignored)
        few = len(objects) <= MOST_LABELS
        labels = [data.taxonomy.names[c] if few else "" for c in objects.classes]
        title = f"{name}: {name_of(splits[name], index)}, {UNITS[data.labels]}: {len(objects)}"
        picture = draw_objects(small, objects.scaled(scale, scale), labels)
        samples.append((printable(title), picture))
    return samples


def _darkened(pixels: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The picture, uint8 [h, w, 3], dark where `ignored`, bool [H, W] of the same picture, says so."""
    y, x = (nearest(have, want) for have, want in zip(ignored.shape, pixels.shape, strict=False))
    light = np.where(ignored[y[:, None], x[None]], IGNORED_LIGHT, 1.0)
    return (pixels * light[..., None]).astype(np.uint8)


def _of_boxes(
    splits: dict[str, Split], data: Data, size: ImageSizeConfig
) -> tuple[Image.Image, Image.Image]:
    """Boxes by class, and by side (root of the area) in the resized image."""
    names = data.taxonomy.names
    counts = {
        name: np.bincount(split.objects.classes, minlength=len(names))
        for name, split in splits.items()
    }
    texts = {name: [f"{n:,}" for n in values] for name, values in counts.items()}
    unit = UNITS[data.labels]
    edges = np.exp2(np.arange(0, np.log2(size.longest_px) + 0.5, 0.5))
    sides = {
        name: np.sqrt(np.prod(resized_boxes(split, size)[:, :2], axis=1))
        for name, split in splits.items()
    }
    small, large = (2 * np.log2(np.sqrt(area)) for area in (SMALL_PX2, LARGE_PX2))
    ticks = [(place, f"{edges[place]:.0f}") for place in range(0, len(edges), 2)]
    limits = [(small, "small", ""), (large, "medium", "large")]
    title = f"Box side, px, after the resize to {size.longest_px}"
    return (
        class_chart(f"{unit.capitalize()} by class", counts, texts, names),
        histogram(title, sides, edges, ticks, limits),
    )


def _of_pixels(
    splits: dict[str, Split], data: Data, parts: Mapping[str, Objects]
) -> tuple[Image.Image, Image.Image]:
    """Pixels by class, with those that are ignored, and parts by what they cover of their image."""
    shares, texts = {}, {}
    for name, split in splits.items():
        figures = pixel_statistics(parts[name], split, data)
        found = [*(entry.share for entry in figures.classes), figures.ignored_share]
        shares[name], texts[name] = np.array(found), [percent(share) for share in found]
    edges = LEAST_SHARE * 10 ** np.arange(0, 4.25, 0.25)
    ticks = [(place, f"{100 * edges[place]:g} %") for place in range(0, len(edges), 4)]
    sizes = {name: part_shares(parts[name], split) for name, split in splits.items()}
    names = (*data.taxonomy.names, "ignored")
    title = f"Part of its image that one of the {UNITS[data.labels]} covers"
    return (
        class_chart("Pixels by class", shares, texts, names, others=1),
        histogram(title, sizes, edges, ticks),
    )
