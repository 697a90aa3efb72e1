"""Which files are predicted on, and where what is found in them is put."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among `paths` and the images in the folders among them, but label maps beside their images."""
    for path in paths:
        if path.is_dir():
            names = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            files = sorted(p for p in names if p.is_file())
            maps = label_maps_among(files)
            if maps:
                first, photo = next(iter(maps.items()))
                told = (
                    f"skipped: {len(maps)} label map(s) in {path}, named after an image beside them and of its "
                    f"shape, with numbers for colours ({first.name} is of {photo.name}); name a file itself to "
                    "predict on it all the same"
                )
                print(printable(told), file=sys.stderr)
            yield from (p for p in files if p not in maps)
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: no such file or folder")


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


def drawing_names(files: Sequence[Path], out: Path, folder: str = "") -> list[Path]:
    """One PNG per image, under names that nothing has but an earlier drawing of ours.

    Args:
        folder: below `out`, where they are put.

    Raises:
        UserError: if predictions.json there is not one of ours.
    """
    own = earlier_drawings(out)
    taken = {path.resolve() for path in files}
    names: list[Path] = []
    for file in files:
        place, number = out / folder / f"{file.stem}.png", 2
        while place.resolve() in taken or (place.exists() and place.resolve() not in own):
            place, number = out / folder / f"{file.stem}-{number}.png", number + 1
        taken.add(place.resolve())
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
        return {path.resolve() for path in drawings | maps}
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
    maps = (out / LABEL_MAPS).resolve()
    if (out / NAMES).exists() and not any(p.parent == maps for p in earlier_drawings(out)):
        raise UserError(
            f"{out / NAMES}: is not of an earlier prediction, and would be replaced; choose another --out"
        )
