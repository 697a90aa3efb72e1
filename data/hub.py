"""Reader: a dataset of the Hugging Face Hub, or a local folder in Hub format.

Columns: image, objects {bbox (COCO xywh, px), category or category_id, area?, iscrowd?}, and
optionally image_id.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.errors import HfHubHTTPError

from config import DataConfig, UserError
from data.decode import image_size
from data.imagefolder import record_of_row
from data.schema import Split


@dataclass(frozen=True)
class HubImages:
    """Encoded images of an Arrow table; read row by row, never all at once."""

    rows: Any
    """datasets.Dataset whose image column is not decoded"""

    def __getitem__(self, index: int) -> Path | bytes:
        return encoded(self.rows[index]["image"], f"row {index}")


def read_split(cfg: DataConfig, which: str) -> Split:
    """The training or validation split ("train" or "val") of a Hub dataset.

    Raises:
        UserError: if it cannot be had, has no such split, or lacks a column.
    """
    name = cfg.train_split if which == "train" else cfg.val_split
    rows = _load(cfg, str(name))
    missing = {"image", "objects"} - set(rows.column_names)
    if missing:
        raise UserError(
            f"data.path {cfg.path}: no column {sorted(missing)[0]!r}; it has {rows.column_names}"
        )
    names = _category_names(rows.features)
    if not isinstance(rows.features["image"], datasets.Image):
        raise UserError(
            f"data.path {cfg.path}: column image holds {rows.features['image']}, no images"
        )
    rows = rows.cast_column("image", datasets.Image(decode=False))
    records = []
    for index, row in enumerate(rows):
        where = f"{cfg.path}, split {name}, row {index}"
        size = image_size(encoded(row["image"], where), where)
        records.append(record_of_row(row, index, where, size))
    return Split(records, HubImages(rows.select_columns("image")), names)


def encoded(cell: dict[str, Any] | None, where: str) -> Path | bytes:
    """Content or file of an undecoded image cell {"bytes", "path"}.

    Raises:
        UserError: naming `where` if the cell is empty.
    """
    if cell is None:
        raise UserError(f"{where}: the image is missing")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def _load(cfg: DataConfig, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(cfg.path, split=split, revision=cfg.revision)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"data.path {cfg.path}: no such dataset on the Hub and no such folder here; if it is "
            "private or gated, log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, ConnectionError, OSError) as error:
        raise UserError(
            f"data.path {cfg.path}: no folder here, and the Hub cannot be reached ({type(error).__name__}); "
            "download it beforehand with `hf download --repo-type dataset` and give the folder"
        ) from error
    except ValueError as error:  # unknown split, or a dataset that wants to run its own code
        raise UserError(
            f"data.path {cfg.path}, split {split}: {' '.join(str(error).split())}"
        ) from error


def _category_names(features: datasets.Features) -> dict[int, str]:
    """Names of the ClassLabel feature of objects.category, if it is one."""
    objects = features["objects"]
    objects = getattr(objects, "feature", objects)
    objects = objects[0] if isinstance(objects, list) else objects
    if not isinstance(objects, dict):
        return {}
    for key in ("category", "category_id"):
        feature = objects.get(key)
        feature = getattr(feature, "feature", feature)
        feature = feature[0] if isinstance(feature, list) else feature
        if isinstance(feature, datasets.ClassLabel):
            return dict(enumerate(feature.names))
    return {}
