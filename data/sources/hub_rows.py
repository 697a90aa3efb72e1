"""Rows of a Hub dataset, with its images still encoded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.errors import HfHubHTTPError

from data.sources.rows import CATEGORY_KEYS, LABEL_MAP_COLUMNS
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels


def open_rows(
    cfg: DataConfig, split: str, streaming: bool, labels: Labels = "boxes"
) -> tuple[Any, dict[int, str], str | None]:
    """Rows with undecoded images, the class names by id, and the column of label maps if they are wanted.

    Raises:
        UserError: as `read_split`.
    """
    rows = guarded(cfg, split, lambda: _load(cfg, split, streaming))
    features = rows.features or {}
    dense = labels == "regions" or (labels == "segments" and "segments_info" in features)
    column = _label_map_column(cfg, features) if dense else None
    missing = {"image", *(["objects"] if column is None else [])} - set(features)
    if missing:
        raise UserError(
            f"data.path {cfg.path}: no column {sorted(missing)[0]!r}; it has {sorted(features)}"
        )
    if not isinstance(features["image"], datasets.Image):
        raise UserError(f"data.path {cfg.path}: column image holds {features['image']}, no images")
    for name in ("image", *([column] if column else [])):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows, _category_names(features) if "objects" in features else {}, column


def _label_map_column(cfg: DataConfig, features: Any) -> str | None:
    """
    Raises:
        UserError: if a column was asked for that is not there or holds no pictures.
    """
    wanted = cfg.label_map_column
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if wanted is not None and wanted not in pictures:
        raise UserError(
            f"data.label_map_column {wanted}: data.path {cfg.path} has pictures in {sorted(pictures)}"
        )
    names = LABEL_MAP_COLUMNS if wanted is None else (wanted,)
    return next((name for name in names if name in pictures), None)


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
