"""A Hub dataset streamed once into a local folder of images, in the form of `data.sources.imagefolder`."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
from tqdm import tqdm

from data.images.headers import EXTENSIONS, Header, inspect
from data.sources.addresses import own_address
from data.sources.hub_rows import encoded, guarded, open_rows
from disk import alone, cache_root, whole_folder
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import EVERY_PIXEL, Labels

FORMAT = 2
"""Raise it when the stored form changes, so that old stores are not read"""
KEPT_COLUMNS = ("image_id", "width", "height", "objects")
LABEL_MAPS = "label_maps"
"""Folder of a split's label maps, below that of its images"""


def ensure_stored(cfg: DataConfig, split: str, labels: Labels = "boxes") -> Path:
    """Write the split's rows unless they are there, and return the folder.

    Raises:
        UserError: if the rows cannot be read, or the folder cannot be written.
    """
    folder = store_folder(cfg, split, labels)
    if folder.is_dir():
        return folder
    try:
        with alone(folder.with_name(f".{folder.name}.lock")):
            if folder.is_dir():  # another process was waited for
                return folder
            with whole_folder(folder, shared=True) as temporary:
                rows, names, column = open_rows(cfg, split, streaming=True, labels=labels)
                guarded(cfg, split, lambda: _write(temporary, rows, names, cfg, split, column))
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot be written: {error.strerror}") from error
    return folder


def store_folder(cfg: DataConfig, split: str, labels: Labels = "boxes") -> Path:
    """Folder of this dataset, revision and split; another one after the dataset has changed."""
    cache = cache_root()
    dense = labels in EVERY_PIXEL
    column = f"\0{labels}\0{cfg.label_map_column}" if dense else ""
    key = f"{cfg.path}\0{cfg.revision}\0{split}{column}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    state = _state(cfg)
    if state is None:  # offline: the newest that is there
        stores = sorted(cache.glob(f"hub-v{FORMAT}-{name}-*"), key=os.path.getmtime)
        return stores[-1] if stores else cache / f"hub-v{FORMAT}-{name}-unknown"
    return cache / f"hub-v{FORMAT}-{name}-{state}"


def _state(cfg: DataConfig) -> str | None:
    """Commit of a Hub dataset, hash of names, sizes and times of a local one; None if unknown."""
    assert cfg.path is not None
    if Path(cfg.path).is_dir():
        files = sorted(file for file in Path(cfg.path).rglob("*") if file.is_file())
        stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    try:
        info = huggingface_hub.HfApi().dataset_info(cfg.path, revision=cfg.revision, timeout=20)
    except Exception:  # offline, gated, absent: opening the rows says which
        return None
    return str(info.sha)[:16]


def _write(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    names: dict[int, str],
    cfg: DataConfig,
    split: str,
    column: str | None = None,
) -> None:
    images = folder / "images"
    (images if column is None else images / LABEL_MAPS).mkdir(parents=True)
    if names:
        (folder / "categories.json").write_text(json.dumps([names[i] for i in range(len(names))]))
    progress = tqdm(rows, desc=f"{cfg.path} {split}", unit=" images", mininterval=1.0)
    with (images / "metadata.jsonl").open("w") as file:
        for number, row in enumerate(progress):
            content = _content(row["image"], cfg)
            name = f"{number:08d}{_suffix(content)}"
            if content is not None:  # otherwise the row's image is found missing
                (images / name).write_bytes(content)
            kept = {key: row[key] for key in KEPT_COLUMNS if row.get(key) is not None}
            if column is not None:
                label_map = _content(row[column], cfg)
                file_name = f"{LABEL_MAPS}/{number:08d}{_suffix(label_map)}"
                kept = {**kept, "objects": None, "label_map_file_name": file_name}
                if row.get("segments_info") is not None:
                    kept["segments_info"] = row["segments_info"]
                if label_map is None:
                    kept["label_map_file_name"] = None
                else:
                    (images / file_name).write_bytes(label_map)
            file.write(json.dumps({"file_name": name, **kept}) + "\n")


def _content(cell: Any, cfg: DataConfig) -> bytes | None:
    """Content of a streamed image cell; None if it has none.

    A stream may name a file instead, also inside of an archive. It must lie in the dataset itself, on
    the Hub or here, since anything may be written in a row.
    """
    source = encoded(cell)
    if source is None or isinstance(source, bytes):
        return source
    address = str(cell["path"])
    if not own_address(address, str(cfg.path)):
        return None
    try:
        with fsspec.open(address, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _suffix(content: bytes | None) -> str:
    """Extension of the content, so that the file is named like what it holds."""
    header = None if content is None else inspect(content)
    found = header.format if isinstance(header, Header) else "JPEG"
    return next(suffix for suffix, formats in EXTENSIONS.items() if found in formats)
