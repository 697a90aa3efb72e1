"""What a folder of labelled images is: its source, and whether its objects have masks, by names and a look inside."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data.images.headers import names_of_images
from data.record import label_file
from data.sources.files import image_files, load_json, read_lines
from data.sources.label_maps import LABEL_SUFFIXES, LAYOUTS
from data.sources.layouts import COCO_FILES, coco_file, lone_file
from data.sources.voc_masks import OF_CLASSES, OF_OBJECTS
from errors import UserError

LOOKED_AT = 200
"""Annotations by which it is told whether there are masks"""


@dataclass(frozen=True)
class Recognised:
    """How a dataset is read."""

    source: str
    said: str
    """By what it was recognised"""
    masks: bool = False
    """Most objects have a mask that is more than its box"""
    keys: dict[str, Any] = field(default_factory=dict)
    """Further keys of `settings.keys.DataConfig`"""


def recognise(root: Path) -> Recognised:
    """The form of the dataset in a folder.

    Raises:
        UserError: if there are no labels that can be read, saying what is there.
    """
    for look in (_yolo, _coco, _imagefolder, _voc, _label_maps, _hub):
        found = look(root)
        if found is not None:
            return found
    images = sum(1 for _ in islice(names_of_images(root), 100_000))
    labels = sorted(
        {
            p.suffix
            for p in islice(root.rglob("*"), 5_000)
            if p.suffix in (".json", ".xml", ".txt", ".csv")
        }
    )
    raise UserError(
        f"{root}: {images:,} images and no labels in a form that is read here"
        f"{f' (there are {chr(44).join(labels)} files)' if labels else ''}; COCO files ({COCO_FILES[0].format(s='train')}), YOLO "
        "(data.yaml), Pascal VOC (Annotations/*.xml), metadata.jsonl and label maps are: docs/data.md"
    )


def _yolo(root: Path) -> Recognised | None:
    files = sorted(file for file in root.glob("*.y*ml") if file.is_file() and _has_names(file))
    if not files:
        return None
    lines = (line for image in islice(image_files(root), 50) for line in _label_lines(image))
    polygons = [len(line.split()) > 5 for line in islice(lines, LOOKED_AT) if line.strip()]
    return Recognised("yolo", f"YOLO, by {files[0].name}", _most(polygons))


def _has_names(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return b"names" in stream.read(100_000)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def _label_lines(image: Path) -> list[bytes]:
    file = label_file(image)
    return read_lines(file) if file.is_file() else []


def _coco(root: Path) -> Recognised | None:
    name = coco_file(root, "train") or lone_file(root)
    if name is None:
        return None
    content = load_json(root / name)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return None
    found = content.get("annotations")
    annotations = [
        a for a in (found if isinstance(found, list) else [])[:LOOKED_AT] if isinstance(a, dict)
    ]
    shown = [_more_than_a_box(a.get("segmentation")) for a in annotations]
    return Recognised("coco", f"COCO files, by {name}", _most(shown))


def _more_than_a_box(segmentation: Any) -> bool:
    if isinstance(segmentation, dict):
        return "counts" in segmentation
    if not isinstance(segmentation, list) or not segmentation:
        return False
    ring = segmentation[0]
    if not isinstance(ring, list) or not all(isinstance(number, int | float) for number in ring):
        return False
    return len(ring) >= 6 and (
        len(segmentation) > 1 or max(len(set(ring[::2])), len(set(ring[1::2]))) > 2
    )


def _most(found: list[bool]) -> bool:
    return bool(found) and 2 * sum(found) > len(found)


def _imagefolder(root: Path) -> Recognised | None:
    for place in ("train", "."):
        file = root / place / "metadata.jsonl"
        if file.is_file():
            rows = list(_rows(file))
            masks = [bool(row.get("segmentation")) for row in rows]
            return Recognised(
                "imagefolder", f"an image folder, by {file.relative_to(root)}", _most(masks)
            )
    return None


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in read_lines(file)[:LOOKED_AT]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        objects = row.get("objects") if isinstance(row, dict) else None
        if isinstance(objects, dict):
            yield objects


def _voc(root: Path) -> Recognised | None:
    if (root / "Annotations").is_dir() or any((root / "train").glob("*.xml")):
        where = "Annotations/" if (root / "Annotations").is_dir() else "train/*.xml"
        return Recognised("voc", f"Pascal VOC, by {where}")
    if (root / OF_CLASSES).is_dir():
        return Recognised("voc", f"Pascal VOC, by {OF_CLASSES}/", (root / OF_OBJECTS).is_dir())
    return None


def _label_maps(root: Path) -> Recognised | None:
    for images, maps in LAYOUTS[:-1]:
        folder, other = root / images.format(split="train"), root / maps.format(split="train")
        if folder.is_dir() and other.is_dir() and _has_maps(other):
            return Recognised("label_maps", f"label maps, by {maps.format(split='train')}/")
    return None


def _has_maps(folder: Path) -> bool:
    return any(
        Path(name).suffix.lower() in LABEL_SUFFIXES for name in islice(names_of_images(folder), 50)
    )


def _hub(root: Path) -> Recognised | None:
    if next(root.glob("**/*.parquet"), None) is None:
        return None
    return Recognised("hub", "a dataset in the Hub's format, by its Parquet files")
