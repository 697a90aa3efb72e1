"""Label maps of files: pictures whose pixels are numbers of classes. And the reader of folders of them.

`path/images/train/*.jpg` with `path/annotations/train/*.png`, and the other layouts of LAYOUTS; other
folders through `data.train_split` and `data.train_annotations` and their validation twins. A label map
has the name of its image, apart from the extension and from an ending that all of them share
(`a.jpg`, `a_mask.png`). Class names come from `data.labels`, `path/categories.json` (a list by id) or
`path/id2label.json` (a table {"0": name}).
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.boxes import from_corners
from data.findings import Findings
from data.images.headers import MAX_PIXELS, Header, of_the_machine, read_header, readable_formats
from data.masks import Rle, bounds, mask_column
from data.objects import Objects
from data.regions import rles_of
from data.schema import Record, Split
from data.sources.files import (
    ImageFiles,
    Inside,
    existing_folder,
    image_files,
    load_json,
    note_unlisted,
)
from data.sources.values import as_int, same_shape
from errors import UserError
from settings.keys import DataConfig, Labels

LAYOUTS = [
    *(("images/{split}", f"{folder}/{{split}}") for folder in ("annotations", "labels", "masks")),
    *(("{split}/images", f"{{split}}/{f}") for f in ("annotations", "labels", "masks")),
    *(("{split}", f"{{split}}{end}") for end in ("_labels", "_masks", "annot", "_annotations")),
    ("images/{split}", "label_maps/{split}"),
    ("img_dir/{split}", "ann_dir/{split}"),
    ("{split}", "annotations/{split}"),
    ("{split}", "labels/{split}"),
    ("{split}", "masks/{split}"),
    ("{split}", "{split}"),
]
"""Folders of images and of their label maps, below data.path"""
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""Of label maps beside their images: formats that keep numbers as they are"""
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")


@dataclass(frozen=True)
class LabelRules:
    """What the numbers of label maps mean."""

    ignore_index: int
    reduce: bool
    named: tuple[int, ...] = ()
    """Values that are classes in any case"""

    @staticmethod
    def of(cfg: DataConfig) -> "LabelRules":
        return LabelRules(cfg.ignore_index, cfg.reduce_labels, tuple(cfg.label_values or ()))

    def categories(self, values: Sequence[int]) -> dict[int, int]:
        """Category ids by value, of those that are classes."""
        unknown = {self.ignore_index, *([0] if self.reduce else [])} - {*self.named}
        known = [value for value in values if value not in unknown]
        return {value: value - 1 if self.reduce else value for value in known}


def read_split(
    cfg: DataConfig, which: str, findings: Findings, labels: Labels = "regions"
) -> Split:
    """The training or validation split ("train" or "val") of folders of images and label maps.

    Raises:
        UserError: for a missing folder, one without images, or names that do not belong together.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    images, maps = _folders(cfg, which, root)
    inside = Inside(root, images, maps)
    found = image_files(images)
    if maps == images:
        stems = {
            path.with_suffix("") for path in found if path.suffix.lower() not in LABEL_SUFFIXES
        }
        found = [p for p in found if p.suffix.lower() not in LABEL_SUFFIXES] or found
        if not stems:
            raise UserError(
                f"{images}: has images and no folder of label maps beside it; set data.{which}_annotations"
            )
    if not found:
        raise UserError(f"{images}: has no images")
    partners, repeated = _partners(found, images, maps, which)
    records, paths, used = [], [], set()
    for path in found:
        where = str(path)
        partner = partners.get(path)
        if not inside.holds(path, where, findings):
            continue
        if partner is None:
            twin = repeated.get(path)
            detail = f"{twin} has that name as well" if twin else f"none of its name in {maps}"
            findings.add("missing label map", where, detail)
            continue
        used.add(partner)
        if not inside.holds(partner, where, findings):
            continue
        name = path.relative_to(images).as_posix()
        record = dense_record(name, where, path, partner, LabelRules.of(cfg), findings)
        if record is not None:
            records.append(record)
            paths.append(path)
    if maps != images:
        for path in image_files(maps):
            if path not in used and path.suffix.lower() in LABEL_SUFFIXES:
                findings.add("image without annotation", str(path), "a label map without an image")
    else:
        note_unlisted(images, [*found, *used], findings)
    names = label_names(cfg, names_of_folder(root))
    return Split(records, ImageFiles(paths), names, dense=True)


def dense_record(
    image_id: int | str,
    where: str,
    source: Path | bytes | None,
    label_source: Path | bytes,
    rules: LabelRules,
    findings: Findings,
) -> Record | None:
    """Record of an image with a label map: a region for each class on it; None, and a finding, if the
    label map cannot be used."""
    opened = open_pair(where, source, label_source, read_label_map, findings)
    if opened is None:
        return None
    rles = rles_of(opened.labels)
    parts = {v: (rles[v], category, False) for v, category in rules.categories(list(rles)).items()}
    return record_of(image_id, where, "label", opened, parts)


@dataclass(frozen=True)
class Opened:
    """An image and its label map, which fit each other."""

    header: Header | None
    """None: the image cannot be read"""
    size: tuple[int, int]
    """(width, height) of the image, px"""
    labels: np.ndarray
    """Integers [h, w], of the image's shape"""


def open_pair(
    where: str,
    source: Path | bytes | None,
    label_source: Path | bytes,
    read: Callable[[Path | bytes], np.ndarray],
    findings: Findings,
) -> Opened | None:
    """An image's header and the numbers of its label map; None, and a finding, if these cannot be used.

    Args:
        read: gives the numbers, or raises a ValueError.
    """
    if source is None:
        findings.add("missing image", where, "the row has no image")
        return None
    if isinstance(label_source, Path) and not os.path.isfile(label_source):
        findings.add("missing label map", where, str(label_source))
        return None
    header = read_header(source, where, findings)
    try:
        labels = read(label_source)
    except ValueError as error:
        file = f"{label_source}: " if isinstance(label_source, Path) else ""
        findings.add("unreadable label map", where, f"{file}{error}")
        return None
    height, width = labels.shape
    size = (width, height) if header is None else (header.width, header.height)
    if not same_shape((width, height), size):
        detail = f"{width} x {height} px, the image has {size[0]} x {size[1]}"
        findings.add("label map of another size", where, detail)
        return None
    return Opened(header, size, labels)


def record_of(
    image_id: int | str,
    where: str,
    unit: str,
    opened: Opened,
    parts: Mapping[int, tuple[Rle, int, bool]],
) -> Record:
    """Record of an image with parts.

    Args:
        unit: as in Record. parts: mask, category and whether it is a crowd, by number.
    """
    masks = [mask for mask, _, _ in parts.values()]
    around = np.array([bounds(mask) for mask in masks]).reshape(-1, 4)
    objects = Objects(
        boxes=from_corners(around * np.tile(opened.size, 2)),
        classes=np.array([category for _, category, _ in parts.values()], dtype=np.int64),
        areas=np.zeros(len(parts)),
        iscrowd=np.array([crowd for _, _, crowd in parts.values()], dtype=bool),
        numbers=np.array(list(parts), dtype=np.int64),
        masks=mask_column(masks),
    )
    header = opened.header
    digest = header.digest if header else ""
    width, height = opened.size
    return Record(image_id, where, width, height, objects, unit, digest, unreadable=header is None)


def read_label_map(source: Path | bytes) -> np.ndarray:
    """Numbers of a label map, integers [H, W]; of a palette image the places in its palette.

    Raises:
        ValueError: if there is no such picture, or its pixels are no numbers.
    """
    pixels = read_numbers(source)
    if pixels.ndim == 3:
        first = pixels[..., :1]
        colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))  # the last one is transparency
        if not (pixels[..., :colours] == first).all():
            raise ValueError("a picture in colours, whose pixels are not numbers of classes")
        pixels = first[..., 0]
    if pixels.dtype.kind not in "ui" or pixels.min() < 0 or pixels.max() >= 1 << 16:
        raise ValueError(f"its numbers are {pixels.dtype}, {pixels.min()} to {pixels.max()}")
    return pixels


def read_numbers(source: Path | bytes) -> np.ndarray:
    """Pixels of a picture as they are, [H, W] or [H, W, channels].

    Raises:
        ValueError: if there is no such picture, or its format does not keep numbers.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            if image.format in LOSSY:
                raise ValueError(f"a {image.format} file, which does not keep numbers as they are")
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} px, more than any photo has")
            image.load()
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError("not a picture") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they run into
        if of_the_machine(error):
            raise
        raise ValueError(f"cannot be decoded: {' '.join(str(error).split())}") from error
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def label_names(cfg: DataConfig, names: Mapping[int, str]) -> Mapping[int, str]:
    """Names of classes by their ids in label maps: the dataset's own, else those of data.labels, of which
    the first one has the id 0, or 1 where 0 says that the class is not known."""
    if cfg.label_values is not None and cfg.labels is not None:
        return dict(zip(cfg.label_values, cfg.labels, strict=True))
    if names or cfg.labels is None:
        return names
    return dict(enumerate(cfg.labels, int(cfg.ignore_index == 0 and not cfg.reduce_labels)))


def names_of_folder(root: Path) -> dict[int, str]:
    """Class names by id of categories.json or id2label.json; empty if there is none.

    Raises:
        UserError: if such a file holds something else.
    """
    for name in ("categories.json", "id2label.json"):
        file = root / name
        if not file.is_file():
            continue
        names = load_json(file)
        if isinstance(names, list):
            names = dict(enumerate(names))
        ids = (
            {as_int(key): label for key, label in names.items()} if isinstance(names, dict) else {}
        )
        if not ids or None in ids or not all(isinstance(label, str) for label in ids.values()):
            raise UserError(f"{file}: expected a list of class names, or a table of them by id")
        return ids  # type: ignore[return-value]
    return {}


def _folders(cfg: DataConfig, which: str, root: Path) -> tuple[Path, Path]:
    """Folders of a split's images and of its label maps.

    Raises:
        UserError: if they are not where they could be.
    """
    split = str(cfg.train_split if which == "train" else cfg.val_split)
    given = cfg.train_annotations if which == "train" else cfg.val_annotations
    if given is not None:
        places = [f"images/{split}", f"{split}/images", split]
        images = next((root / p for p in places if (root / p).is_dir()), root / split)
        maps = root / given
        for folder in (images, maps):
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder of data.{which}_split or data.{which}_annotations"
                )
        return images, maps
    for image_place, map_place in LAYOUTS:
        images, maps = root / image_place.format(split=split), root / map_place.format(split=split)
        if images.is_dir() and maps.is_dir():
            return images, maps
    raise UserError(
        f"data.path {root}: no images of split {split!r} with label maps, such as images/{split} with "
        f"annotations/{split}, or both in {split}; name the folders by data.{which}_split and "
        f"data.{which}_annotations (there are: {', '.join(_folders_below(root)) or 'none'})"
    )


def _folders_below(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())[:10]


def _partners(
    images: Sequence[Path], folder: Path, maps: Path, which: str
) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """The label map of each image that has one, and for images whose name an earlier one has, that.

    Raises:
        UserError: if no ending fits.
    """
    key = f"data.{which}_annotations names their folder"
    found = [p for p in image_files(maps) if p.suffix.lower() in LABEL_SUFFIXES]
    by_stem = {path.relative_to(maps).with_suffix("").as_posix(): path for path in found}
    if not by_stem:
        raise UserError(f"{maps}: has no label maps ({', '.join(LABEL_SUFFIXES)}); {key}")
    stems: dict[str, Path] = {}
    repeated = {}
    for path in images:
        first = stems.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if first != path:
            repeated[path] = first
    if not stems.keys() & by_stem.keys():
        by_stem = _without_ending(stems, by_stem, f"{maps}: ", key)
    return {path: by_stem[stem] for stem, path in stems.items() if stem in by_stem}, repeated


def _without_ending(
    stems: Mapping[str, Path], by_stem: Mapping[str, Path], where: str, key: str
) -> dict[str, Path]:
    """Label maps by the names of their images: without the ending that gives most images one.

    Raises:
        UserError: if there is none, or more than one.
    """
    counts: Counter[str] = Counter()
    for stem in by_stem:
        cuts = range(1, len(stem))
        counts.update({stem[cut:] for cut in cuts if stem[:cut] in stems})
    best = counts.most_common(2)
    if not best or (len(best) > 1 and best[0][1] == best[1][1]):
        example = ", ".join(map(repr, sorted(by_stem)[:3]))
        raise UserError(
            f"{where}label maps ({example}) are not named like the images ({next(iter(stems))!r}), nor like "
            f"them with one ending; {key}"
        )
    ending = best[0][0]
    return {stem.removesuffix(ending): p for stem, p in by_stem.items() if stem.endswith(ending)}
