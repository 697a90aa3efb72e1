"""A cleaned copy of a dataset, as COCO files; nothing is changed in place."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from data.build import Data
from data.check.doctor import readable_places, splits_of
from data.findings import IMAGE_KINDS, Finding
from data.images.decode import decode
from data.images.headers import EXTENSIONS, Header, inspect
from data.schema import Record, Split
from errors import UserError

JPEG_QUALITY = 95
DONE = {
    "broken row": "left out",
    "path leaves the folder": "left out",
    "duplicate image id": "left out; ids are new",
    "annotation without image": "left out",
    "unknown category": "left out",
    "duplicate annotation id": "ids are new",
    "size differs from annotation": "written with the size of the pixels",
    **dict.fromkeys(IMAGE_KINDS, "image left out, with its boxes"),
    "wrong extension": "copied under the extension of its format",
    **dict.fromkeys(
        (
            "16-bit image",
            "CMYK image",
            "palette image",
            "transparent image",
            "EXIF-rotated image",
        ),
        "encoded anew, as RGB",
    ),
    "box not a number": "box left out",
    "box without area": "box left out",
    "box with a negative side": "box left out",
    "box inverted": "corners put in order",
    "box outside the image": "box left out",
    "box partly outside": "box clipped",
}
"""What is done about a finding; the kinds that are missing here are left as they are"""


def write_repaired(
    data: Data,
    findings: Collection[Finding],
    folder: Path,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Write train/, val/, annotations/{train,val}.json and repairs.jsonl into `folder`.

    Images that are fine are hard links to the originals where possible, else copies; others are
    encoded anew. The folder appears when it is complete.

    Args:
        findings: those of the readers and of `check_images`. progress: called after each image.

    Returns:
        The number of repairs.

    Raises:
        UserError: if `folder` is not empty, or cannot be written.
    """
    refuse_full(folder)
    repairs = [finding for finding in findings if finding.kind in DONE]
    lost = {f.image for f in findings if f.kind in IMAGE_KINDS and f.image is not None}
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        temporary.chmod(0o755)
        (temporary / "annotations").mkdir()
        for name, split in splits_of(data).items():
            _write_split(temporary, name, split, data, lost, progress)
        lines = [
            json.dumps({"kind": f.kind, "where": f.where, "was": f.detail, "what": DONE[f.kind]})
            for f in repairs
        ]
        (temporary / "repairs.jsonl").write_text("".join(f"{line}\n" for line in lines))
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"--repair {folder}: cannot be written: {error}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
    return len(repairs)


def refuse_full(folder: Path) -> None:
    """
    Raises:
        UserError: if something is there that a copy would be mixed with.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--repair {folder}: must be an empty or absent folder")


def _write_split(
    root: Path,
    name: str,
    split: Split,
    data: Data,
    lost: Collection[tuple[str, int]],
    progress: Callable[[], object],
) -> None:
    (root / name).mkdir()
    kept = [i for place, i in readable_places({name: split}) if (place, i) not in lost]
    if not kept:
        raise UserError(f"--repair: no image of {name} is left")
    are_files = isinstance(split.images[kept[0]], Path)
    names = _Names({Path(split.images[i]).parent for i in kept} if are_files else ())  # type: ignore
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in kept:
        record = split.records[index]
        progress()
        file_name, width, height = _write_image(root / name, split, index, names)
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for row in _annotations(record, image_id, data.taxonomy.category_ids):
            annotations.append({"id": len(annotations) + 1, **row})
    categories = [
        {"id": category, "name": class_name}
        for category, class_name in zip(
            data.taxonomy.category_ids, data.taxonomy.names, strict=True
        )
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))


def _annotations(
    record: Record, image_id: int, category_ids: tuple[int, ...]
) -> Iterable[dict[str, Any]]:
    for box, kind, area, crowd in zip(
        record.boxes, record.categories, record.areas, record.iscrowd, strict=True
    ):
        yield {
            "image_id": image_id,
            "category_id": category_ids[int(kind)],
            "bbox": [float(value) for value in box],
            "area": float(area),
            "iscrowd": int(crowd),
        }


def _write_image(folder: Path, split: Split, index: int, names: "_Names") -> tuple[str, int, int]:
    """Write image `index`; its name in `folder`, width and height."""
    source, where = split.images[index], split.records[index].where
    header = inspect(source)
    if not isinstance(header, Header):
        raise UserError(f"{where}: {header.kind} now, but not when it was checked")
    plain = header.exif_orientation == 1 and not (header.deep or header.transparent)
    if plain and header.mode not in ("CMYK", "P", "PA"):
        target = folder / names.new(source, index, header.format)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, target)
        return target.relative_to(folder).as_posix(), header.width, header.height
    pixels = decode(source, where)
    is_jpeg = header.format in ("JPEG", "MPO")
    target = folder / names.new(source, index, "JPEG" if is_jpeg else "PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if is_jpeg else {}
    Image.fromarray(pixels).save(target, "JPEG" if is_jpeg else "PNG", **options)
    return target.relative_to(folder).as_posix(), pixels.shape[1], pixels.shape[0]


def _copy(source: Path | bytes, target: Path) -> None:
    if isinstance(source, bytes):
        target.write_bytes(source)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


class _Names:
    """File names of a split's copies: those of the originals as far as they can be kept."""

    def __init__(self, folders: Collection[Path]):
        self.common = Path(os.path.commonpath(folders)) if folders else None
        self.used: set[str] = set()

    def new(self, source: Path | bytes, index: int, image_format: str) -> str:
        """A name that is used once, with an extension of the format."""
        name = f"{index:06d}"
        if isinstance(source, Path) and self.common is not None:
            name = source.relative_to(self.common).as_posix()
        stem, suffix = os.path.splitext(name)
        if image_format not in EXTENSIONS.get(suffix.lower(), ()):
            suffix = next(s for s, formats in EXTENSIONS.items() if image_format in formats)
        wanted, number = f"{stem}{suffix}", 1
        while wanted.lower() in self.used:  # some file systems do not tell a.jpg from A.JPG
            number += 1
            wanted = f"{stem}-{number}{suffix}"
        self.used.add(wanted.lower())
        return wanted
