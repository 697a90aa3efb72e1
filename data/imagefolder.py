"""Reader: image folders with a metadata.jsonl each.

`path/train/metadata.jsonl` has one object a line: {"file_name", "image_id", "objects": {"bbox",
"category", "area", ...}}, the image-folder form of the datasets library. Class names come from
`data.labels` or from `path/categories.json` (a list of names by id).
"""

import json
from pathlib import Path
from typing import Any

from config import DataConfig, UserError
from data.coco import ImageFiles, existing_folder, inside, make_record
from data.decode import image_size
from data.schema import Record, Split


def read_split(cfg: DataConfig, which: str) -> Split:
    """The training or validation split ("train" or "val") of an image folder.

    Raises:
        UserError: for a missing folder or file, or a broken row, named by its line.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    folder = root / str(cfg.train_split if which == "train" else cfg.val_split)
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: does not exist; data.{which}_split names the folder it lies in")
    rows = [(n, line) for n, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]
    if not rows:
        raise UserError(f"{file}: lists no images")
    records: list[Record] = []
    paths: list[Path] = []
    for number, line in rows:
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
            path = inside(folder, str(row["file_name"]), where)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: not an object with a file_name: {error}") from error
        paths.append(path)
        records.append(record_of_row(row, len(records), where, image_size(path, where)))
    return Split(records, ImageFiles(paths), _category_names(root))


def record_of_row(row: dict[str, Any], index: int, where: str, size: tuple[int, int]) -> Record:
    """Record of a row with `objects` {bbox, category or category_id, area?, iscrowd?}.

    Raises:
        UserError: naming `where` if a column is missing or lists have different lengths.
    """
    objects = row.get("objects") or {"bbox": [], "category": []}
    if not isinstance(objects, dict) and not (
        isinstance(objects, list) and all(isinstance(item, dict) for item in objects)
    ):
        raise UserError(f"{where}: objects must hold columns bbox and category, not {objects!r}")
    if isinstance(objects, list):  # one object a box instead of one list a column
        keys = {key for item in objects for key in item}
        objects = {key: [item.get(key) for item in objects] for key in keys}
    category_key = "category" if "category" in objects else "category_id"
    if "bbox" not in objects or category_key not in objects:
        raise UserError(f"{where}: objects needs bbox and category, has {sorted(objects)}")
    return make_record(
        row.get("image_id", index),
        where,
        size,
        objects["bbox"],
        objects[category_key],
        objects.get("area"),
        objects.get("iscrowd"),
    )


def _category_names(root: Path) -> dict[int, str]:
    file = root / "categories.json"
    if not file.is_file():
        return {}
    try:
        names = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: expected a list of class names")
    return dict(enumerate(names))
