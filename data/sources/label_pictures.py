"""Label maps: pictures whose pixels are numbers of classes or segments, and records made of them."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.boxes import from_corners
from data.findings import Findings
from data.images.headers import MAX_PIXELS, Header, of_the_machine, read_header, readable_formats
from data.masks import Rle, bounds, mask_column
from data.objects import Objects
from data.record import Record
from data.regions import TooManyValuesError, rles_of
from data.sources.values import same_shape
from settings.keys import DataConfig

MOST_UNKNOWN = 64
"""Values without a name on one label map where classes have names; each of more would be a finding of its own"""
MOST_VALUES = 1024
"""Values of one label map where no class has a name"""
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")


@dataclass(frozen=True)
class LabelRules:
    """What the numbers of label maps mean."""

    ignore_index: int
    reduce: bool
    named: tuple[int, ...] = ()
    """Values that are classes in any case"""
    classes: frozenset[int] = frozenset()
    """Category ids that have a name; empty if none has, and every value is a class"""

    @staticmethod
    def of(cfg: DataConfig, names: Mapping[int, str]) -> "LabelRules":
        """
        Args:
            names: of the classes, by category id.
        """
        values = tuple(cfg.label_values or ())
        return LabelRules(cfg.ignore_index, cfg.reduce_labels, values, frozenset(names))

    def categories(self, values: Sequence[int]) -> dict[int, int]:
        """Category ids by value, of those that are classes."""
        unknown = {self.ignore_index, *([0] if self.reduce else [])} - {*self.named}
        known = [value for value in values if value not in unknown]
        return {value: value - 1 if self.reduce else value for value in known}

    @property
    def most_strangers(self) -> int:
        """Values of one label map that may be no known class."""
        return MOST_UNKNOWN if self.classes else MOST_VALUES

    def strangers(self, values: Sequence[int]) -> list[int]:
        """Those of the values that are no known class."""
        found = self.categories(values).items()
        return [value for value, category in found if category not in self.classes]


def dense_record(
    image_id: int | str,
    where: str,
    source: Path | bytes | None,
    label_source: Path | bytes,
    rules: LabelRules,
    findings: Findings,
) -> Record | None:
    """Record of an image with a label map: a region for each class on it; None, and a finding, if the
    label map cannot be used."""
    opened = open_pair(where, source, label_source, read_label_map, findings)
    if opened is None:
        return None
    try:
        rles = rles_of(opened.labels, len(rules.classes) + 2 + rules.most_strangers)
        strangers = rules.strangers(list(rles))
    except TooManyValuesError as error:
        strangers = rules.strangers(error.values)
    if len(strangers) > rules.most_strangers:
        findings.add("label map of too many values", where, many_values(strangers))
        return None
    parts = {v: (rles[v], category, False) for v, category in rules.categories(list(rles)).items()}
    return record_of(image_id, where, "label", opened, parts)


def many_values(values: Sequence[int]) -> str:
    """What a label map may be that has these values besides those that mean something."""
    first = ", ".join(map(str, values[:5]))
    return f"{len(values):,} values without a meaning ({first}, ...): a depth map, numbers of instances, a photo?"


@dataclass(frozen=True)
class Opened:
    """An image and its label map, which fit each other."""

    header: Header | None
    """None: the image cannot be read"""
    size: tuple[int, int]
    """(width, height) of the image, px"""
    labels: np.ndarray
    """Integers [h, w], of the image's shape"""


def open_pair(
    where: str,
    source: Path | bytes | None,
    label_source: Path | bytes,
    read: Callable[[Path | bytes], np.ndarray],
    findings: Findings,
) -> Opened | None:
    """An image's header and the numbers of its label map; None, and a finding, if these cannot be used.

    Args:
        read: gives the numbers, or raises a ValueError.
    """
    if source is None:
        findings.add("missing image", where, "the row has no image")
        return None
    if isinstance(label_source, Path) and not os.path.isfile(label_source):
        findings.add("missing label map", where, str(label_source))
        return None
    header = read_header(source, where, findings)
    try:
        labels = read(label_source)
    except ValueError as error:
        file = f"{label_source}: " if isinstance(label_source, Path) else ""
        findings.add("unreadable label map", where, f"{file}{error}")
        return None
    height, width = labels.shape
    size = (width, height) if header is None else (header.width, header.height)
    if not same_shape((width, height), size):
        detail = f"{width} x {height} px, the image has {size[0]} x {size[1]}"
        findings.add("label map of another size", where, detail)
        return None
    return Opened(header, size, labels)


def record_of(
    image_id: int | str,
    where: str,
    unit: str,
    opened: Opened,
    parts: Mapping[int, tuple[Rle, int, bool]],
) -> Record:
    """Record of an image with parts.

    Args:
        unit: as in Record. parts: mask, category and whether it is a crowd, by number.
    """
    masks = [mask for mask, _, _ in parts.values()]
    around = np.array([bounds(mask) for mask in masks]).reshape(-1, 4)
    objects = Objects(
        boxes=from_corners(around * np.tile(opened.size, 2)),
        classes=np.array([category for _, category, _ in parts.values()], dtype=np.int64),
        areas=np.zeros(len(parts)),
        iscrowd=np.array([crowd for _, _, crowd in parts.values()], dtype=bool),
        numbers=np.array(list(parts), dtype=np.int64),
        masks=mask_column(masks),
    )
    header = opened.header
    digest = header.digest if header else ""
    width, height = opened.size
    return Record(image_id, where, width, height, objects, unit, digest, unreadable=header is None)


def read_label_map(source: Path | bytes) -> np.ndarray:
    """Numbers of a label map, integers [H, W]; of a palette image the places in its palette.

    Raises:
        ValueError: if there is no such picture, or its pixels are no numbers.
    """
    pixels = read_numbers(source)
    if pixels.ndim == 3:
        first = pixels[..., :1]
        colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))  # the last one is transparency
        if not (pixels[..., :colours] == first).all():
            raise ValueError("a picture in colours, whose pixels are not numbers of classes")
        pixels = first[..., 0]
    if pixels.dtype.kind not in "ui" or pixels.min() < 0 or pixels.max() >= 1 << 16:
        raise ValueError(f"its numbers are {pixels.dtype}, {pixels.min()} to {pixels.max()}")
    return pixels


def read_numbers(source: Path | bytes) -> np.ndarray:
    """Pixels of a picture as they are, [H, W] or [H, W, channels].

    Raises:
        ValueError: if there is no such picture, or its format does not keep numbers.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            if image.format in LOSSY:
                raise ValueError(f"a {image.format} file, which does not keep numbers as they are")
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} px, more than any photo has")
            image.load()
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError("not a picture") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they run into
        if of_the_machine(error):
            raise
        raise ValueError(f"cannot be decoded: {' '.join(str(error).split())}") from error
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
