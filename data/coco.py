"""Reader: a folder with images and COCO annotation files.

`path/train/*.jpg` with `path/annotations/train.json`; other names through `data.train_split`,
`data.train_annotations` and their validation twins.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import DataConfig, UserError
from data.decode import image_size
from data.schema import Record, Split


@dataclass(frozen=True)
class ImageFiles:
    """Images as files on disk."""

    paths: Sequence[Path]

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]


def read_split(cfg: DataConfig, which: str) -> Split:
    """The training or validation split ("train" or "val") of a COCO dataset.

    Raises:
        UserError: for a missing folder or file, a broken file, or an annotation without image.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    name = cfg.train_split if which == "train" else cfg.val_split
    given = cfg.train_annotations if which == "train" else cfg.val_annotations
    file = root / (given or f"annotations/{name}.json")
    if not file.is_file():
        raise UserError(
            f"{file}: the COCO annotation file of data.{which}_split {name!r} does not exist; "
            f"set data.{which}_annotations"
        )
    return read_coco_file(file, root / str(name))


def read_coco_file(file: Path, image_folder: Path) -> Split:
    """Split of one COCO file whose `file_name`s are relative to `image_folder`.

    Raises:
        UserError: as `read_split`.
    """
    content = _load(file)
    try:
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = content["images"]
        ids = [image["id"] for image in images]
        hash(tuple(ids))  # lists and objects are no ids
        files = [str(image["file_name"]) for image in images]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a COCO file: missing or broken {error}") from error
    _check_ids(file, ids, by_image)
    paths = [inside(image_folder, name, str(file)) for name in files]
    records = [
        _record(image_id, path, by_image.get(image_id, []))
        for image_id, path in zip(ids, paths, strict=True)
    ]
    return Split(records, ImageFiles(paths), names)


def existing_folder(path: str) -> Path:
    """`path` as a folder.

    Raises:
        UserError: if it does not exist.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path {path}: no such folder")
    return root


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder / name`, which must not lead out of `folder`.

    Raises:
        UserError: naming `where` and the path that leaves the folder.
    """
    inner = os.path.normpath(name)
    if os.path.isabs(inner) or inner.split(os.sep)[0] == os.pardir:
        raise UserError(f"{where}: file_name {name!r} leads out of {folder}")
    return folder / inner


def make_record(
    image_id: int | str,
    where: str,
    size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    categories: Sequence[int],
    areas: Sequence[float] | None,
    iscrowd: Sequence[bool] | None,
) -> Record:
    """Record of plain lists; a missing area is the box's own.

    Raises:
        UserError: naming `where` if the lists do not fit each other.
    """
    try:
        box_array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        category_array = np.asarray(categories, dtype=np.int64).reshape(-1)
        area_array = (
            box_array[:, 2] * box_array[:, 3]
            if areas is None
            else np.asarray(areas, dtype=np.float64).reshape(-1)
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: boxes or categories are not numbers: {error}") from error
    crowd = np.zeros(len(box_array), bool) if iscrowd is None else np.asarray(iscrowd, dtype=bool)
    lengths = {len(box_array), len(category_array), len(area_array), len(crowd)}
    if len(lengths) > 1:
        raise UserError(
            f"{where}: {len(box_array)} boxes, {len(category_array)} categories, "
            f"{len(area_array)} areas, {len(crowd)} iscrowd: these must be equally many"
        )
    return Record(image_id, where, *size, box_array, category_array, area_array, crowd)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a COCO file: expected an object at the top")
    return content


def _check_ids(file: Path, ids: list[Any], by_image: dict[Any, list[dict[str, Any]]]) -> None:
    if not ids:
        raise UserError(f"{file}: lists no images")
    if len(set(ids)) != len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"{file}: image id {repeated!r} is used for several images")
    orphans = [a for image_id in set(by_image) - set(ids) for a in by_image[image_id]]
    if orphans:
        first = orphans[0]
        raise UserError(
            f"{file}: {len(orphans)} annotation(s) of images that the file does not list; first: "
            f"annotation {first.get('id')!r} of image {first['image_id']!r}"
        )


def _record(image_id: int | str, path: Path, annotations: list[dict[str, Any]]) -> Record:
    where = str(path)
    size = image_size(path, where)
    try:
        boxes = [a["bbox"] for a in annotations]
        categories = [a["category_id"] for a in annotations]
    except KeyError as error:
        raise UserError(f"{where}: an annotation of this image has no {error}") from error
    areas = [a["area"] for a in annotations] if all("area" in a for a in annotations) else None
    crowd = [bool(a.get("iscrowd", 0)) for a in annotations]
    return make_record(image_id, where, size, boxes, categories, areas, crowd)
