"""Validation images made small enough to be looked at in rows."""

from pathlib import Path

import numpy as np

from data.canvas import resized_size
from data.dataset import Data
from data.images.decode import decode
from data.objects import Objects
from data.record import Record
from data.regions import label_map, regions_of, segment_map, segments_of
from data.schema import Split
from settings.keys import ImageSizeConfig

THUMBNAIL_PX = 480


def thumbnail(split: Split, place: int) -> tuple[np.ndarray, float, float]:
    """uint8 [h, w, 3], and its width and height as parts of the decoded image's.

    Photos are drawn small: a dozen of 12 megapixels would take seconds, and tens of megabytes.
    """
    record = split.records[place]
    small = resized_size(record.height, record.width, ImageSizeConfig(THUMBNAIL_PX))
    wanted = small if max(small) < max(record.height, record.width) else None
    pixels = decode(split.images[place], record.where, wanted, draft=wanted is not None)
    return pixels, pixels.shape[1] / record.width, pixels.shape[0] / record.height


def title_of(split: Split, place: int, name: str = "val") -> str:
    """Split and file name, or row, of an image."""
    return f"{name}: {name_of(split, place)}"


def name_of(split: Split, place: int) -> str:
    """File name, or row, of an image; where each has a file of annotations, `where` would be that one."""
    where = Path(split.records[place].where)
    if where.suffix.lower() != ".xml":
        return where.name
    file = split.file(place)
    return file.name if isinstance(file, Path) else where.name


def true_parts(record: Record, data: Data) -> Objects:
    """The true regions or segments of an image."""
    size, taxonomy = (record.height, record.width), data.taxonomy
    if data.labels == "regions":
        return regions_of(label_map(record.objects, size, taxonomy.background))
    return segments_of(*segment_map(record.objects, size, taxonomy.stuff, taxonomy.background))
