"""Reader: image folders with a metadata.jsonl each.

`path/train/metadata.jsonl` has one object a line: {"file_name", "image_id", "objects": {"bbox",
"category", "area", "segmentation", ...}}, the image-folder form of the datasets library. Boxes are as
`data.box_format` says. Class names come from `data.labels` or from `path/categories.json` (a list of
names by id); a category may be its name. For semantic segmentation a line may name a label map in place of
objects, {"file_name", "label_map_file_name"}, as the datasets library has it, and for panoptic segmentation
its "segments_info" besides.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.images.headers import EXTENSIONS
from data.record import Record
from data.schema import Split
from data.sources.files import (
    ImageFiles,
    Inside,
    existing_folder,
    note_unlisted,
    read_lines,
)
from data.sources.label_maps import label_names, names_of_folder
from data.sources.rows import LABEL_MAP_COLUMNS, Rows
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import EVERY_PIXEL, Labels


def read_split(cfg: DataConfig, which: str, findings: Findings, labels: Labels = "boxes") -> Split:
    """The training or validation split ("train" or "val") of an image folder.

    Args:
        labels: what is wanted of the objects.

    Raises:
        UserError: for a missing folder or metadata file, or one without lines.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    folder = root / str(cfg.train_split if which == "train" else cfg.val_split)
    return read_folder(cfg, which, root, folder, findings, labels)


def read_folder(
    cfg: DataConfig,
    which: str,
    root: Path,
    folder: Path,
    findings: Findings,
    labels: Labels = "boxes",
) -> Split:
    """The split that lies in `folder` of the dataset `root`.

    Raises:
        UserError: as `read_split`.
    """
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: does not exist; data.{which}_split names the folder it lies in")
    lines = [(number, line) for number, line in enumerate(read_lines(file), 1) if line.strip()]
    if not lines:
        raise UserError(f"{file}: lists no images")
    inside = Inside(root, folder, links=cfg.follow_links)
    names = names_of_folder(root)
    parsed = [(n, _row(line, f"{file}, line {n}", findings)) for n, line in lines]
    rows_there = [row for _, row in parsed if row]
    of_segments = any("segments_info" in row for row in rows_there)
    column = None
    if labels in EVERY_PIXEL and (labels == "regions" or of_segments):
        column = _label_map_key(rows_there, cfg.label_map_column, file)
    dense = column is not None
    named = label_names(cfg, names, of_segments) if dense else names
    rows = Rows(cfg, named, findings, labels)
    records: list[Record] = []
    paths: list[Path] = []
    listed: list[Path] = []
    for number, row in parsed:
        where = f"{file}, line {number}"
        path = inside.join(folder, row["file_name"], where, findings) if row is not None else None
        if row is None or path is None:
            continue
        listed.append(path)
        if column is None:
            record = rows.record(row, number - 1, where, path)
        else:
            name = row.get(column)
            label_map = None
            if isinstance(name, str) and name:
                listed.append(folder / name)
                label_map = inside.join(folder, name, where, findings)
                if label_map is None:
                    continue
            record = rows.dense_record(row, number - 1, where, path, label_map, of_segments)
        if record is not None:
            records.append(record)
            paths.append(path)
    note_unlisted(folder, listed, findings)
    return Split(records, ImageFiles(paths), named, dense)


def _label_map_key(rows: Sequence[dict[str, Any]], wanted: str | None, file: Path) -> str | None:
    """Key of the label map's file; None if rows have none.

    Raises:
        UserError: if a key was asked for that there is not.
    """
    present = {key for row in rows for key, value in row.items() if _names_a_picture(value)}
    names = LABEL_MAP_COLUMNS if wanted is None else (wanted,)
    keys = [key for name in names for key in (f"{name}_file_name", name)]
    found = next((key for key in keys if key in present), None)
    if wanted is not None and found is None:
        has = ", ".join(sorted(present)) or "none"
        raise UserError(
            f"data.label_map_column {wanted}: keys with files of pictures in {file}: {has}"
        )
    return found


def _names_a_picture(value: Any) -> bool:
    return isinstance(value, str) and os.path.splitext(value)[1].lower() in EXTENSIONS


def _row(line: bytes, where: str, findings: Findings) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        findings.add("broken row", where, f"not a line of JSON: {error}")
        return None
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        findings.add("broken row", where, "not an object with a file_name")
        return None
    return row
