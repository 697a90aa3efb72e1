"""Reader: a dataset of the Hugging Face Hub, or a local folder in Hub format.

Columns: image, objects {bbox, category or category_id, area?, iscrowd?, segmentation?}, and optionally image_id,
width, height; for semantic segmentation a column with label maps in place of objects, and for panoptic segmentation
`segments_info` besides. Boxes are as `data.box_format` says. A split may be cut, `train[:10%]`. With
`data.streaming` the rows are read once, without the dataset's own cache, into a folder of images
that `data.sources.imagefolder` reads from then on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from data.findings import Findings
from data.schema import Split
from data.sources.files import Inside
from data.sources.hub_rows import encoded, open_rows
from data.sources.imagefolder import read_folder
from data.sources.label_maps import label_names
from data.sources.rows import Rows
from data.sources.store import ensure_stored
from errors import UserError
from settings.keys import DataConfig, Labels


@dataclass(frozen=True)
class HubImages:
    """Encoded images of an Arrow table; read row by row, never all at once."""

    rows: Any
    """datasets.Dataset whose image column is not decoded"""
    numbers: tuple[int, ...]
    """The row of each image"""

    def __getitem__(self, index: int) -> Path | bytes:
        number = self.numbers[index]
        source = encoded(self.rows[number]["image"])
        if source is None:
            raise UserError(f"row {number}: the image is missing")
        return source


def read_split(cfg: DataConfig, which: str, findings: Findings, labels: Labels = "boxes") -> Split:
    """The training or validation split ("train" or "val") of a Hub dataset.

    Args:
        labels: what is wanted of the objects.

    Raises:
        UserError: if it cannot be had, has no such split, or lacks a column.
    """
    split = str(cfg.train_split if which == "train" else cfg.val_split)
    if cfg.streaming:
        root = ensure_stored(cfg, split, labels)
        own = replace(cfg, label_map_column=None)  # the store has a name of its own for it
        return read_folder(own, which, root, root / "images", findings, labels)
    rows, names, column = open_rows(cfg, split, streaming=False, labels=labels)
    if not len(rows):
        raise UserError(f"data.path {cfg.path}, split {split}: lists no images")
    of_segments, dense = "segments_info" in (rows.features or {}), column is not None
    named = label_names(cfg, names, of_segments) if dense else names
    reader = Rows(cfg, named, findings, labels)
    inside = Inside(
        *map(
            Path, (str(cfg.path), datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE)
        )
    )
    records, numbers = [], []
    for number, row in enumerate(rows):
        where = f"{cfg.path}, split {split}, row {number}"
        source = encoded(row["image"])
        if isinstance(source, Path) and not inside.holds(source, where, findings):
            continue
        if column is None:
            record = reader.record(row, number, where, source)
        else:
            label_map = encoded(row[column])
            if isinstance(label_map, Path) and not inside.holds(label_map, where, findings):
                continue
            record = reader.dense_record(row, number, where, source, label_map, of_segments)
        if record is not None:
            records.append(record)
            numbers.append(number)
    images = HubImages(rows.select_columns("image"), tuple(numbers))
    return Split(records, images, named, dense)
