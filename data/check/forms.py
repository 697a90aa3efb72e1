"""Forms of a repaired copy: COCO files of objects or of segments, or label maps.

What is learnt of a dataset decides: where every pixel has a class or is ignored, a file of objects would lose
which of the two it is.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.coco_format import coco_content
from data.dataset import Data
from data.objects import Objects
from data.regions import label_map
from data.taxonomy import Taxonomy
from errors import UserError

USUAL_IGNORED = 255
"""Value of ignored pixels, unless it is a class"""
LARGEST_VALUE = (1 << 16) - 1
LARGEST_NUMBER = (1 << 24) - 1
"""Of a segment, whose number is a colour"""

Entries = Sequence[dict[str, Any]]
"""Images as COCO files list them: id, file_name, width, height"""


@dataclass(frozen=True)
class Form:
    """How a copy is laid out, and what it keeps."""

    source: str
    """`data.source` that reads it"""
    images: str
    """Folder of a split's images"""
    kept: str
    """What of the annotations is in it, for people"""
    write: Callable[[Path, str, Entries, Sequence[Objects], Data], None]
    """Called with the copy's folder, the name of a split, its images, their objects, and the data"""
    maps: bool = True
    """It has label maps, which are named like the images apart from the extension"""


def form_of(data: Data) -> Form:
    """The form that loses nothing of what is learnt."""
    return FORMS[data.labels] if data.train.dense else OBJECTS


def keys_of_copy(data: Data, folder: Path) -> dict[str, Any]:
    """Keys of `settings.keys.DataConfig` with which the copy in `folder` is read; all others that say where
    data are or what they mean have their defaults.

    Raises:
        UserError: as `ignored_value`.
    """
    form = form_of(data)
    keys: dict[str, Any] = {"source": form.source, "path": str(folder), "train_split": "train"}
    same = data.val.images is data.train.images
    keys |= {"val_on_train": True} if same else {"val_split": "val"}
    if form is FORMS["regions"]:
        keys["ignore_index"] = ignored_value(data.taxonomy)
    return keys


def class_values(taxonomy: Taxonomy) -> tuple[int, ...]:
    """Value of each class in label maps: the category ids, if these are values that a picture can have."""
    ids = taxonomy.category_ids
    return ids if 0 <= min(ids) <= max(ids) <= LARGEST_VALUE else tuple(range(len(ids)))


def ignored_value(taxonomy: Taxonomy) -> int:
    """Value of ignored pixels in label maps: one that is no class.

    Raises:
        UserError: if there is none.
    """
    taken = {*class_values(taxonomy)}
    free = (v for v in (USUAL_IGNORED, *range(LARGEST_VALUE + 1)) if v not in taken)
    if (value := next(free, None)) is None or len(taken) >= LARGEST_VALUE:
        raise UserError(
            f"--repair: {len(taken)} classes are more than 16 bits hold beside ignored pixels"
        )
    return value


def _write_objects(
    root: Path, name: str, images: Entries, tables: Sequence[Objects], data: Data
) -> None:
    objects = Objects.of_images(tables)
    content = coco_content(images, objects, data.taxonomy)
    if data.taxonomy.background is not None and _is_added(data.taxonomy, objects):
        content["categories"].pop(0)  # reading the copy adds it again
    _write_json(root / "annotations" / f"{name}.json", content)


def _is_added(taxonomy: Taxonomy, objects: Objects) -> bool:
    """Whether the background is as `data.taxonomy.with_background` adds it."""
    first, *others = taxonomy.category_ids
    unused = next(category for category in itertools.count() if category not in others)
    return taxonomy.background == 0 and first == unused and not (objects.classes == 0).any()


def _write_regions(
    root: Path, name: str, images: Entries, tables: Sequence[Objects], data: Data
) -> None:
    classes = class_values(data.taxonomy)
    values = np.array([ignored_value(data.taxonomy), *classes])
    values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
    for image, objects in zip(images, tables, strict=True):
        labels = values[label_map(objects, _size(image, objects))]
        _write_png(root / "annotations" / name, image["file_name"], labels)
    names = dict(zip(classes, data.taxonomy.names, strict=True))
    _write_json(root / "id2label.json", names)


def _write_segments(
    root: Path, name: str, images: Entries, tables: Sequence[Objects], data: Data
) -> None:
    taxonomy, annotations = data.taxonomy, []
    for image, objects in zip(images, tables, strict=True):
        places = np.arange(len(objects))
        numbers = objects.numbers
        if len(numbers) and not 0 < numbers.min() <= numbers.max() <= LARGEST_NUMBER:
            numbers = places + 1
        placed = label_map(replace(objects, classes=places), _size(image, objects))
        drawn = np.array([0, *numbers.tolist()])[placed]
        colours = np.stack([drawn >> shift & 255 for shift in (0, 8, 16)], axis=2)
        file_name = _write_png(
            root / "annotations" / name, image["file_name"], colours.astype(np.uint8)
        )
        segments = [
            {"id": number, "category_id": taxonomy.category_ids[kind], "iscrowd": int(crowd)}
            | {"area": area, "bbox": box}
            for number, kind, crowd, area, box in zip(
                numbers.tolist(),
                objects.classes.tolist(),
                objects.iscrowd.tolist(),
                objects.areas.tolist(),
                objects.boxes.tolist(),
                strict=True,
            )
        ]
        entry = {"image_id": image["id"], "file_name": file_name, "segments_info": segments}
        annotations.append(entry)
    categories = [
        {"id": category, "name": label, "isthing": int(kind not in taxonomy.stuff)}
        for kind, (category, label) in enumerate(
            zip(taxonomy.category_ids, taxonomy.names, strict=True)
        )
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write_json(root / "annotations" / f"{name}.json", content)


def _size(image: dict[str, Any], objects: Objects) -> tuple[int, int]:
    """(height, width) of an image's label map, px: its own, which may be another one than the image's."""
    return objects.masks[0].size if len(objects) else (image["height"], image["width"])


def _write_png(folder: Path, image_name: str, pixels: np.ndarray) -> str:
    """Write a label map beside others; its name in `folder`."""
    file = (folder / image_name).with_suffix(".png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, "PNG")
    return file.relative_to(folder).as_posix()


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


OBJECTS = Form(
    *("coco", "{split}", "boxes, classes, areas, iscrowd and masks", _write_objects),
    maps=False,
)
FORMS = {
    "regions": Form("label_maps", "images/{split}", "the class of every pixel", _write_regions),
    "segments": Form("coco", "{split}", "segments, their classes and iscrowd", _write_segments),
}
"""By what is learnt, of datasets whose label maps say it"""
