"""Reader: image folders with a metadata.jsonl each.

`path/train/metadata.jsonl` has one object a line: {"file_name", "image_id", "objects": {"bbox",
"category", "area", "segmentation", ...}}, the image-folder form of the datasets library. Boxes are as
`data.box_format` says. Class names come from `data.labels` or from `path/categories.json` (a list of
names by id); a category may be its name.
"""

import json
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.schema import Record, Split
from data.sources.files import (
    ImageFiles,
    Inside,
    existing_folder,
    load_json,
    note_unlisted,
    read_lines,
)
from data.sources.rows import Rows
from errors import UserError
from settings.keys import DataConfig


def read_split(cfg: DataConfig, which: str, findings: Findings, masks: bool = False) -> Split:
    """The training or validation split ("train" or "val") of an image folder.

    Args:
        masks: whether objects get the masks of their segmentations.

    Raises:
        UserError: for a missing folder or metadata file, or one without lines.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    folder = root / str(cfg.train_split if which == "train" else cfg.val_split)
    return read_folder(cfg, which, root, folder, findings, masks)


def read_folder(
    cfg: DataConfig, which: str, root: Path, folder: Path, findings: Findings, masks: bool = False
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
    inside = Inside(root, folder)
    names = _category_names(root)
    rows = Rows(cfg, names, findings, masks)
    records: list[Record] = []
    paths: list[Path] = []
    listed: list[Path] = []
    for number, line in lines:
        where = f"{file}, line {number}"
        row = _row(line, where, findings)
        path = inside.join(folder, row["file_name"], where, findings) if row is not None else None
        if row is None or path is None:
            continue
        listed.append(path)
        record = rows.record(row, number - 1, where, path)
        if record is not None:
            records.append(record)
            paths.append(path)
    note_unlisted(folder, listed, findings)
    return Split(records, ImageFiles(paths), names)


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


def _category_names(root: Path) -> dict[int, str]:
    file = root / "categories.json"
    if not file.is_file():
        return {}
    names = load_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: expected a list of class names")
    return dict(enumerate(names))
