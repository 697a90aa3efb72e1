"""Reader: a dataset of the Hugging Face Hub, or a local folder in Hub format.

Columns: image, objects {bbox, category or category_id, area?, iscrowd?, segmentation?}, and optionally image_id,
width, height; for semantic segmentation a column with label maps in place of objects, and for panoptic segmentation
`segments_info` besides. Boxes are as `data.box_format` says. A split may be cut, `train[:10%]`. With
`data.streaming` the rows are read once, without the dataset's own cache, into a folder of images
that `data.sources.imagefolder` reads from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from data.findings import Findings
from data.schema import Split
from data.sources.files import Inside
from data.sources.hub_rows import encoded, open_rows
from data.sources.imagefolder import read_folder
from data.sources.label_maps import label_names
from data.sources.rows import Rows
from data.sources.store import ensure_stored
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels


@dataclass(frozen=True)
class HubImages:
    """Encoded images of an Arrow table; read row by row, never all at once."""

    rows: Any
    """datasets.Dataset whose image column is not decoded"""
    numbers: Sequence[int] | np.ndarray
    """The row of each image"""
    split: str = ""
    """Name of the split that the rows are"""

    def __getitem__(self, index: int) -> Path | bytes:
        number = int(self.numbers[index])
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
    images = HubImages(rows.select_columns("image"), tuple(numbers), split)
    return Split(records, images, named, dense)


def open_splits(cfg: DataConfig, labels: Labels) -> dict[str, Any]:
    """Rows of the splits of a dataset that is not streamed, by name.

    Raises:
        UserError: as `read_split`.
    """
    names = dict.fromkeys(str(n) for n in (cfg.train_split, cfg.val_split) if n is not None)
    return {name: open_rows(cfg, name, streaming=False, labels=labels)[0] for name in names}


def state_of(rows: Any) -> str | None:
    """By which a change of rows is seen; None where their images are files, which may change alone."""
    cells = rows.data.column("image")
    content, path = (pc.struct_field(cells, name) for name in ("bytes", "path"))
    if pc.any(pc.and_(pc.is_null(content), pc.is_valid(path))).as_py():
        return None
    return str(rows._fingerprint)
