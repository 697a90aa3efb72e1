"""Which files are predicted on, and where what is found in them is put."""

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from data.findings import Findings
from data.images.headers import EXTENSIONS, read_header
from data.sources.label_maps import LABEL_SUFFIXES
from data.sources.label_pictures import read_label_map
from data.sources.values import same_shape
from errors import UserError, printable

RESULTS = "predictions.json"
LABEL_MAPS = "label_maps"
"""Folder of the label maps, below that of the drawings"""
NAMES = "id2label.json"
"""What the values of the label maps mean, as data.source label_maps reads it"""
IMAGE_SUFFIXES = set(EXTENSIONS)
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}
DRAWN_VIDEO = ".predicted.mp4"
"""How the names of drawn videos end"""
MARK = "permafrost: predictions"
"""Comment in every picture that is written: it is not to be predicted on"""


def image_files(paths: Sequence[Path | str], out: Path | None = None) -> Iterator[Path]:
    """The files among `paths`, of patterns among them (`photos/*.jpg`, `**`) and below the folders among them, each
    once; of folders images and videos, but neither label maps beside their images nor drawings of ours.

    Args:
        out: folder of drawings, whose list of earlier ones is regarded.

    Raises:
        UserError: for a path that is not there, and a pattern that nothing fits.
    """
    seen = set()
    for path in paths:
        for file in _files_of(Path(path), earlier_drawings(out) if out else set()):
            absolute = os.path.abspath(file)
            if absolute not in seen:
                seen.add(absolute)
                yield file


def _files_of(path: Path, drawn: set[Path]) -> Iterator[Path]:
    if path.is_dir():
        yield from _below(path, drawn)
    elif path.exists() or path.is_symlink():
        yield path
    elif glob.has_magic(str(path)):
        found = sorted(glob.glob(str(path), recursive=True))
        files = [file for file in map(Path, found) if file.is_dir() or _fits(file)]
        if not files:
            raise UserError(f"{path}: no image, video or folder fits this pattern")
        alone = _without_drawings(path, [f for f in files if not f.is_dir()], drawn)
        for file in files:
            if file.is_dir() and "**" not in path.parts:  # whose pattern names what is below itself
                yield from _below(file, drawn)
            elif file in alone:
                yield file
    else:
        raise UserError(f"{path}: no such file or folder")


def _fits(file: Path) -> bool:
    suffix = file.suffix.lower()
    return (suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES) and not file.name.startswith(".")


def _below(top: Path, drawn: set[Path]) -> Iterator[Path]:
    """Images and videos of a folder and those in it, in order; links to folders are not followed."""
    for name, folders, names in os.walk(top):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        folder = Path(name)
        fitting = [folder / own for own in sorted(names) if _fits(Path(own))]
        files = _without_drawings(folder, fitting, drawn)
        maps = label_maps_among([file for file in files if file.is_file()])
        if maps:
            first, photo = next(iter(maps.items()))
            told = (
                f"skipped: {len(maps)} label map(s) in {folder}, named after an image beside them and of its "
                f"shape, with numbers for colours ({first.name} is of {photo.name}); name a file itself to "
                "predict on it all the same"
            )
            print(printable(told), file=sys.stderr)
        yield from (file for file in files if file not in maps)


def _without_drawings(place: Path, files: Sequence[Path], drawn: set[Path]) -> list[Path]:
    kept = [file for file in files if not (is_drawing(file) or real(file) in drawn)]
    if len(kept) < len(files):
        told = f"skipped: {len(files) - len(kept)} drawing(s) of earlier predictions in {place}"
        print(printable(told), file=sys.stderr)
    return kept


def is_drawing(file: Path) -> bool:
    """Whether a file says that it was written here."""
    if file.suffix.lower() not in (".jpg", ".png") or not file.is_file():
        return file.name.endswith(DRAWN_VIDEO)
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as picture:
            comments = [picture.info.get(key) for key in ("comment", "Comment")]
    except (
        Exception
    ):  # Pillow's readers raise whatever their parsing runs into; who decodes it will say
        return False
    return MARK in comments or MARK.encode() in comments


def label_maps_among(files: Sequence[Path]) -> dict[Path, Path]:
    """The image of each file of a folder that is a label map: `a.jpg` of `a.png`, `a_mask.png`, `a-labels.tif`.

    Names are as in `data.sources.label_maps`, with the ending set off by a sign, since `photo10.png` is another
    photo than `photo1.jpg`. What is in the file has to agree: photos can have such names as well.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    maps = {}
    for file in files:
        if file.suffix.lower() not in LABEL_SUFFIXES:
            continue
        stem = file.stem
        cuts = [len(stem), *(cut for cut in range(1, len(stem)) if not stem[cut].isalnum())]
        beside = [p for cut in cuts for p in by_stem.get(stem[:cut], []) if p != file]
        if (photo := next((p for p in beside if _is_of(file, p)), None)) is not None:
            maps[file] = photo
    return maps


def _is_of(label_map: Path, photo: Path) -> bool:
    """Whether a picture has numbers for pixels, and `photo`, of the same shape, has colours."""
    header = read_header(photo, str(photo), Findings())
    size = None if header is None else (header.width, header.height)
    return size is not None and _has_numbers(label_map, size) and not _has_numbers(photo, size)


def _has_numbers(file: Path, size: tuple[int, int]) -> bool:
    """Whether a picture can be a label map of an image of `size` (width, height)."""
    try:
        height, width = read_label_map(file).shape
    except ValueError:  # colours, or a format that does not keep numbers
        return False
    return same_shape((width, height), size)


def real(path: Path) -> Path:
    """Where links lead to; a link to itself leads nowhere."""
    return Path(os.path.realpath(path))


def is_video(file: Path) -> bool:
    """Whether a file is named like a video."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def drawing_names(files: Sequence[Path], out: Path, folder: str = "") -> list[Path]:
    """One JPEG per image, or one MP4 per video, under names that nothing has but an earlier drawing of ours.

    Args:
        folder: below `out`, where they are put: of label maps, which are PNG.

    Raises:
        UserError: if predictions.json there is not one of ours.
    """
    own = earlier_drawings(out)
    taken = {real(path) for path in files}
    numbers: Counter[str] = Counter()
    names: list[Path] = []
    for file in files:
        suffix = ".png" if folder else DRAWN_VIDEO if is_video(file) else ".jpg"
        while True:
            numbers[file.stem + suffix] += 1
            number = numbers[file.stem + suffix]
            place = out / folder / f"{file.stem}{f'-{number}' if number > 1 else ''}{suffix}"
            ours = real(place) in own or is_drawing(place)
            if real(place) not in taken and (ours or not place.exists()):
                break
        taken.add(real(place))
        names.append(place)
    return names


def earlier_drawings(out: Path) -> set[Path]:
    """The pictures that predictions.json in `out` lists, which may be made anew.

    Raises:
        UserError: if that file is something else, and would be lost.
    """
    file = out / RESULTS
    if not file.exists():
        return set()
    try:
        rows = json.loads(file.read_bytes())
        drawings = {out / Path(row["drawing"]).name for row in rows}
        maps = {
            out / LABEL_MAPS / Path(row["label_map"]).name for row in rows if "label_map" in row
        }
        return {real(path) for path in drawings | maps}
    except (
        *(OSError, ValueError, TypeError, KeyError, AttributeError),
        RecursionError,
    ) as error:
        raise UserError(
            f"{file}: is not of an earlier prediction, and would be replaced; choose another --out"
        ) from error


def refuse_lost_names(out: Path) -> None:
    """
    Raises:
        UserError: if id2label.json in `out` is not of earlier label maps of ours, and would be lost.
    """
    maps = real(out / LABEL_MAPS)
    if (out / NAMES).exists() and not any(p.parent == maps for p in earlier_drawings(out)):
        raise UserError(
            f"{out / NAMES}: is not of an earlier prediction, and would be replaced; choose another --out"
        )
