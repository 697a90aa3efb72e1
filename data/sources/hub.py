"""Reader: a dataset of the Hugging Face Hub, or a local folder in Hub format.

Columns: image, objects {bbox, category or category_id, area?, iscrowd?}, and optionally image_id,
width, height. Boxes are as `data.box_format` says. A split may be cut, `train[:10%]`. With
`data.streaming` the rows are read once, without the dataset's own cache, into a folder of images
that `data.sources.imagefolder` reads from then on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.errors import HfHubHTTPError

from data.findings import Findings
from data.schema import Split
from data.sources.files import Inside
from data.sources.imagefolder import CATEGORY_KEYS, Rows, read_folder
from errors import UserError
from settings.keys import DataConfig


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


def read_split(cfg: DataConfig, which: str, findings: Findings) -> Split:
    """The training or validation split ("train" or "val") of a Hub dataset.

    Raises:
        UserError: if it cannot be had, has no such split, or lacks a column.
    """
    split = str(cfg.train_split if which == "train" else cfg.val_split)
    if cfg.streaming:
        from data.sources.store import ensure_stored

        root = ensure_stored(cfg, split, lambda: open_rows(cfg, split, streaming=True))
        return read_folder(cfg, which, root, root / "images", findings)
    rows, names = open_rows(cfg, split, streaming=False)
    if not len(rows):
        raise UserError(f"data.path {cfg.path}, split {split}: lists no images")
    reader = Rows(cfg, names, findings)
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
        record = reader.record(row, number, where, source)
        if record is not None:
            records.append(record)
            numbers.append(number)
    return Split(records, HubImages(rows.select_columns("image"), tuple(numbers)), names)


def open_rows(cfg: DataConfig, split: str, streaming: bool) -> tuple[Any, dict[int, str]]:
    """Rows with undecoded images, and the class names by id.

    Raises:
        UserError: as `read_split`.
    """
    rows = guarded(cfg, split, lambda: _load(cfg, split, streaming))
    features = rows.features or {}
    missing = {"image", "objects"} - set(features)
    if missing:
        raise UserError(
            f"data.path {cfg.path}: no column {sorted(missing)[0]!r}; it has {sorted(features)}"
        )
    if not isinstance(features["image"], datasets.Image):
        raise UserError(f"data.path {cfg.path}: column image holds {features['image']}, no images")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    return rows, _category_names(features)


def encoded(cell: Any) -> Path | bytes | None:
    """Content or file of an undecoded image cell {"bytes", "path"}; None if it is empty."""
    if not isinstance(cell, dict):
        return None
    if cell.get("bytes") is not None:
        return cell["bytes"]
    return Path(cell["path"]) if cell.get("path") else None


def guarded(cfg: DataConfig, split: str, action: Callable[[], Any]) -> Any:
    """What `action` returns; whatever the datasets library raises in it becomes one clear error.

    Raises:
        UserError: naming the dataset and its split.
    """
    try:
        return action()
    except UserError:
        raise
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
    except Exception as error:  # unknown split, broken files, a dataset that wants to run its code
        text = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"data.path {cfg.path}, split {split}: {text}") from error


def _load(cfg: DataConfig, split: str, streaming: bool) -> Any:
    rows = datasets.load_dataset(cfg.path, split=split, revision=cfg.revision, streaming=streaming)
    return rows._resolve_features() if streaming and rows.features is None else rows


def _category_names(features: Any) -> dict[int, str]:
    """Names of the ClassLabel feature of objects.category, if it is one."""
    objects = features["objects"]
    objects = getattr(objects, "feature", objects)
    objects = objects[0] if isinstance(objects, list) else objects
    if not isinstance(objects, dict):
        return {}
    for key in CATEGORY_KEYS:
        feature = objects.get(key)
        feature = getattr(feature, "feature", feature)
        feature = feature[0] if isinstance(feature, list) else feature
        if isinstance(feature, datasets.ClassLabel):
            return dict(enumerate(feature.names))
    return {}
