"""Reader: a folder with images and COCO annotation files.

`path/train/*.jpg` with `path/annotations/train.json`; other names through `data.train_split`,
`data.train_annotations`, `data.train_images` and their validation twins, or found by `data.sources.layouts`. An annotation without a `bbox` takes the box of
its `segmentation`. Panoptic files are as `data.sources.panoptic` says.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.record import number_text
from data.schema import Split
from data.sources.annotations import Boxes
from data.sources.box_formats import format_of
from data.sources.files import ImageFiles, Inside, existing_folder, load_json, note_unlisted
from data.sources.layouts import coco_folder
from data.sources.missing import note_without_annotations
from data.sources.panoptic import is_panoptic, read_panoptic
from data.sources.segmentations import box_of_segmentation
from data.sources.values import Unique, as_id, as_int, as_size, short
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels


def read_split(cfg: DataConfig, which: str, findings: Findings, labels: Labels = "boxes") -> Split:
    """The training or validation split ("train" or "val") of a COCO dataset.

    Args:
        labels: unless boxes are wanted alone, objects get the masks of their segmentations.

    Raises:
        UserError: for a missing folder or annotation file, or one that is no COCO file.
    """
    assert cfg.path is not None
    masks = labels != "boxes"
    root = existing_folder(cfg.path)
    file = _file(cfg, which, root)
    if not file.is_file():
        raise UserError(
            f"{file}: the COCO annotation file of data.{which}_split {_split(cfg, which)!r} does not exist; "
            f"set data.{which}_annotations"
        )
    content = load_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{file}: not a COCO file: expected an object with a list 'images'")
    if not content["images"]:
        raise UserError(f"{file}: lists no images")
    if cfg.labels is None or "categories" in content:
        names = _category_names(content, file, findings)
    else:
        names = {}
    folder = _folder(cfg, which, root, content["images"], findings)
    entries = _images(content["images"], file, findings)
    inside = Inside(root, folder, links=cfg.follow_links)
    if is_panoptic(content):
        if not masks:
            raise UserError(f"{file}: is a panoptic file; it has no boxes, set model.task")
        inside = Inside(root, folder, file.with_suffix(""), links=cfg.follow_links)
        return read_panoptic(content, file, entries, folder, inside, names, findings, labels)
    boxes = _annotations(content, file, folder, entries, findings, masks)
    records, paths, empty, box_format = [], [], [], format_of(cfg)
    for image_id, entry in entries.items():
        path = inside.join(folder, entry["file_name"], f"{file}, image {image_id!r}", findings)
        if path is not None:
            size = as_size(entry.get("width"), entry.get("height"))
            records.append(boxes[image_id].record(image_id, path, size, box_format))
            paths.append(path)
            if not len(records[-1].objects):
                empty.append(path)
    note_without_annotations(empty, file.name, len(paths), root, findings)
    others = _listed_by_the_other(cfg, which, root, folder)
    if which == "train" or not others:  # a folder that both share is looked at once
        note_unlisted(folder, [*paths, *others], findings)
    return Split(records, ImageFiles(paths), names)


def _split(cfg: DataConfig, which: str) -> str:
    return str(cfg.train_split if which == "train" else cfg.val_split)


def _file(cfg: DataConfig, which: str, root: Path) -> Path:
    """Annotation file of a split."""
    given = cfg.train_annotations if which == "train" else cfg.val_annotations
    return root / (given or f"annotations/{_split(cfg, which)}.json")


def _folder(cfg: DataConfig, which: str, root: Path, images: list[Any], findings: Findings) -> Path:
    """Image folder of a split, whose annotation file lists `images`."""
    given = cfg.train_images if which == "train" else cfg.val_images
    if given is not None:
        return root / given
    name = "training" if which == "train" else "validation"
    return coco_folder(root, _split(cfg, which), name, images, findings)


def _category_names(content: dict[str, Any], file: Path, findings: Findings) -> dict[int, str]:
    names: dict[int, str] = {}
    for place, entry in _objects(content, "categories", file, findings):
        category, name = as_int(entry.get("id")), entry.get("name")
        if category is None or not isinstance(name, str):
            findings.add("broken row", f"{file}, category at place {place}", "no id or no name")
        elif names.setdefault(category, name) != name:
            findings.add(
                "broken row",
                f"{file}, category at place {place}",
                f"id {category} is both {names[category]!r} and {name!r}",
            )
    return names


def _images(images: list[Any], file: Path, findings: Findings) -> dict[int | str, dict[str, Any]]:
    """The usable entries by image id."""
    entries: dict[int | str, dict[str, Any]] = {}
    unique = Unique("duplicate image id", findings)
    for place, entry in _objects({"images": images}, "images", file, findings):
        image_id, where = as_id(entry.get("id")), f"{file}, image at place {place}"
        name = entry.get("file_name")
        if image_id is None:
            findings.add("broken row", where, f"its id is {short(entry.get('id'))}")
        elif not isinstance(name, str) or not name:
            findings.add("broken row", where, f"its file_name is {short(name)}")
        elif unique.is_new(image_id, where):
            entries[image_id] = entry
    return entries


def _annotations(
    content: dict[str, Any],
    file: Path,
    folder: Path,
    entries: dict[int | str, dict[str, Any]],
    findings: Findings,
    masks: bool,
) -> dict[int | str, Boxes]:
    """The usable annotations by image id."""
    boxes = {
        image_id: Boxes(os.path.join(folder, entry["file_name"]), "annotation", findings, masks)
        for image_id, entry in entries.items()
    }
    unique = Unique("duplicate annotation id", findings)
    for place, entry in _objects(content, "annotations", file, findings):
        number = as_int(entry.get("id"))
        number = ~place if number is None or number < 0 else number
        where = f"{file}, {number_text('annotation', number)}"
        if number >= 0:
            unique.is_new(number, where)
        image_id = as_id(entry.get("image_id"))
        if image_id is None:
            findings.add("broken row", where, f"its image_id is {short(entry.get('image_id'))}")
        elif image_id not in boxes:
            findings.add("annotation without image", where, f"of image {short(image_id)}")
        else:
            _take(boxes[image_id], number, entry)
    return boxes


def _take(boxes: Boxes, number: int, entry: dict[str, Any]) -> None:
    box, segmentation, own = entry.get("bbox"), entry.get("segmentation"), None
    if box is None:
        box, own = box_of_segmentation(segmentation), "xywh"
        if box is None:
            boxes.broken(number, "neither a bbox nor a segmentation that has one")
            return
    area, crowd = entry.get("area"), entry.get("iscrowd", 0)
    boxes.add(number, box, entry.get("category_id"), area, crowd, segmentation, own)


def _objects(
    content: dict[str, Any], key: str, file: Path, findings: Findings
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, object) of a list of objects; anything else in it is a finding."""
    entries = content.get(key)
    if not isinstance(entries, list):
        findings.add("broken row", str(file), f"no list {key!r}")
        return
    for place, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield place, entry
        else:
            findings.add(
                "broken row", f"{file}, {key} at place {place}", f"{short(entry)}, not an object"
            )


def _listed_by_the_other(cfg: DataConfig, which: str, root: Path, folder: Path) -> list[Path]:
    """Images that the other split's file lists, where both splits share a folder."""
    other = "val" if which == "train" else "train"
    if other == "val" and cfg.val_split is None:
        return []
    file = _file(cfg, other, root)
    given = cfg.train_images if other == "train" else cfg.val_images
    usual = root / (given or _split(cfg, other))
    if usual.is_dir() and not _shared(usual, folder) or not file.is_file():
        return []
    content = load_json(file)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        return []
    others = _folder(cfg, other, root, images, Findings())
    if not _shared(others, folder):
        return []
    names = [entry.get("file_name") for entry in images if isinstance(entry, dict)]
    return [others / name for name in names if isinstance(name, str)]


def _shared(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
