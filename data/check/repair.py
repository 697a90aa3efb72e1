"""A cleaned copy of a dataset, in the form that its labels need; nothing is changed in place."""

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from PIL import Image

from data.check.doctor import readable_places, splits_of
from data.check.forms import form_of
from data.dataset import Data
from data.findings import IMAGE_KINDS, KINDS, Finding
from data.images.decode import decode
from data.images.headers import EXTENSIONS, Header, inspect
from data.schema import Split
from disk import whole_folder
from errors import UserError

JPEG_QUALITY = 95


def write_repaired(
    data: Data,
    findings: Collection[Finding],
    folder: Path,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Write images, annotations (see `data.check.forms`) and repairs.jsonl into `folder`.

    Images that are fine are copied byte by byte, others are encoded anew. The folder appears when it
    is complete.

    Args:
        findings: those of the readers and of `check_images`. progress: called after each image.

    Returns:
        The number of repairs.

    Raises:
        UserError: if `folder` is not empty, or cannot be written.
    """
    refuse_full(folder)
    repairs = [(f, done) for f in findings if (done := KINDS[f.kind].repaired) is not None]
    lost = {f.image for f in findings if f.kind in IMAGE_KINDS and f.image is not None}
    try:
        with whole_folder(folder) as temporary:
            for name, split in splits_of(data).items():
                _write_split(temporary, name, split, data, lost, progress)
            lines = [
                json.dumps({"kind": f.kind, "where": f.where, "was": f.detail, "what": done})
                for f, done in repairs
            ]
            (temporary / "repairs.jsonl").write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise UserError(f"--repair {folder}: cannot be written: {error}") from error
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
    form = form_of(data)
    folder = root / form.images.format(split=name)
    folder.mkdir(parents=True)
    kept = [i for place, i in readable_places({name: split}) if (place, i) not in lost]
    if not kept:
        raise UserError(f"--repair: no image of {name} is left")
    are_files = isinstance(split.images[kept[0]], Path)
    folders = {Path(split.images[i]).parent for i in kept} if are_files else ()  # type: ignore
    names = _Names(folders, form.maps)
    images: list[dict[str, Any]] = []
    for number, index in enumerate(kept, 1):
        progress()
        file_name, width, height = _write_image(folder, split, index, names)
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
    form.write(root, name, images, [split.records[index].objects for index in kept], data)


def _write_image(folder: Path, split: Split, index: int, names: "_Names") -> tuple[str, int, int]:
    """Write image `index`; its name in `folder`, width and height."""
    source, where = split.file(index), split.records[index].where
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
    shutil.copyfile(source, target)  # not a link: who edits the copy must not change the original


class _Names:
    """File names of a split's copies: those of the originals as far as they can be kept."""

    def __init__(self, folders: Collection[Path], by_stem: bool):
        """
        Args:
            folders: those of the originals. by_stem: names must differ without their extension, and be seen by
                who lists the folder.
        """
        self.common = Path(os.path.commonpath(folders)) if folders else None
        self.by_stem = by_stem
        self.used: set[str] = set()

    def new(self, source: Path | bytes, index: int, image_format: str) -> str:
        """A name that is used once, with an extension of the format."""
        name = f"{index:06d}"
        if isinstance(source, Path) and self.common is not None:
            name = source.relative_to(self.common).as_posix()
        if self.by_stem:
            parent, base = os.path.split(name)
            name = os.path.join(parent, base.lstrip(".") or f"{index:06d}")
        stem, suffix = os.path.splitext(name)
        if image_format not in EXTENSIONS.get(suffix.lower(), ()):
            suffix = next(s for s, formats in EXTENSIONS.items() if image_format in formats)
        wanted, number = stem, 1
        while self._key(wanted, suffix) in self.used:
            number += 1
            wanted = f"{stem}-{number}"
        self.used.add(self._key(wanted, suffix))
        return f"{wanted}{suffix}"

    def _key(self, stem: str, suffix: str) -> str:
        """What must differ; some file systems do not tell a.jpg from A.JPG."""
        return stem.lower() if self.by_stem else f"{stem}{suffix}".lower()
