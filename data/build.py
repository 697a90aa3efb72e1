"""From `cfg.data` to two clean splits and the taxonomy."""

import dataclasses
import hashlib
import importlib
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from config import DataConfig, UserError
from data.checking import clean_boxes
from data.schema import Record, Split, Taxonomy, build_taxonomy
from data.splits import split_off

READERS = {
    "synthetic": "data.synthetic",
    "coco": "data.coco",
    "imagefolder": "data.imagefolder",
    "hub": "data.hub",
}
"""Module of each `data.source`; it has read_split(cfg, which) -> Split"""


@dataclass(frozen=True)
class Data:
    """Everything a run needs to know about its images. Categories are class indices here."""

    train: Split
    val: Split
    taxonomy: Taxonomy
    defects: Counter[str]
    """Annotated boxes by defect, both splits together"""

    def fingerprint(self) -> str:
        """Hash of ids, sizes, boxes and classes of both splits."""
        digest = hashlib.sha256(json.dumps(self.taxonomy.names).encode())
        for record in [*self.train.records, *self.val.records]:
            digest.update(f"{record.image_id}:{record.width}x{record.height}".encode())
            digest.update(record.boxes.tobytes() + record.categories.tobytes())
        return digest.hexdigest()


def build_data(cfg: DataConfig, seed: int) -> Data:
    """Read both splits, map categories to class indices, clean the boxes.

    Raises:
        UserError: for anything wrong with the dataset, named by file or row.
    """
    if cfg.source == "synthetic":
        from data.synthetic import ensure_written

        cfg = ensure_written(cfg, seed)
    reader = importlib.import_module(READERS[cfg.source])
    train = reader.read_split(cfg, "train")
    if cfg.val_split is not None:
        val = reader.read_split(cfg, "val")
    elif cfg.val_on_train:
        val = train
    else:
        train, val = split_off(train, cfg.val_fraction, seed)
    if cfg.limit is not None:
        train = train.subset(range(min(cfg.limit, len(train))))
        val = train if cfg.val_on_train else val
    taxonomy = build_taxonomy([train, val], cfg.labels)
    defects: Counter[str] = Counter()
    train, val = (_cleaned(split, taxonomy, defects) for split in (train, val))
    for name, split in (("training", train), ("validation", val)):
        if not any(len(record.boxes) for record in split.records):
            raise UserError(f"the {name} split has {len(split)} images and not one valid box")
    return Data(train, val, taxonomy, defects)


def _cleaned(split: Split, taxonomy: Taxonomy, defects: Counter[str]) -> Split:
    records = [_clean_record(record, taxonomy, defects) for record in split.records]
    return dataclasses.replace(split, records=records)


def _clean_record(record: Record, taxonomy: Taxonomy, defects: Counter[str]) -> Record:
    classes = taxonomy.class_indices(record.categories, record.where)
    clean = clean_boxes(record.boxes, record.width, record.height)
    defects.update(clean.defects)
    own_area = clean.boxes[:, 2] * clean.boxes[:, 3]
    areas = record.areas[clean.kept]
    return dataclasses.replace(
        record,
        boxes=clean.boxes,
        categories=classes[clean.kept],
        areas=np.where(areas > 0, areas, own_area),
        iscrowd=record.iscrowd[clean.kept],
    )
