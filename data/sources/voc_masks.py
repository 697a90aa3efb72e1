"""Masks of Pascal VOC: `path/SegmentationClass/*.png`, and `path/SegmentationObject/*.png` beside them.

The images of a split are listed in `path/ImageSets/Segmentation/<split>.txt`, and lie in
`path/JPEGImages/`. 0 is the background, 255 the border of objects, of which nobody knows what it is.
Class ids are places in `data.labels`, or else in VOC's own list; with `data.labels` the first one is the
background's where regions are wanted, and not there where masks are.
"""

import os
from pathlib import Path

import numpy as np

from data.boxes import from_corners
from data.findings import Findings
from data.images.headers import read_header
from data.masks import bounds, encode, mask_column
from data.objects import Objects
from data.record import Record
from data.regions import rles_of
from data.schema import Split
from data.sources.files import ImageFiles, Inside, image_files, read_lines
from data.sources.label_maps import refuse_ignored
from data.sources.label_pictures import LabelRules, dense_record, read_label_map
from data.sources.values import Unique
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
    ),
    "tvmonitor",
)
"""VOC's classes 1 to 20, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"""
VOID = 255
IMAGES, OF_CLASSES, OF_OBJECTS = "JPEGImages", "SegmentationClass", "SegmentationObject"


def read_split(
    cfg: DataConfig, which: str, root: Path, findings: Findings, labels: Labels
) -> Split:
    """The training or validation split ("train" or "val").

    Raises:
        UserError: for a missing folder or list.
    """
    split = str(cfg.train_split if which == "train" else cfg.val_split)
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        boxes = (
            "" if (root / OF_CLASSES).is_dir() else f" (there are no masks without {OF_CLASSES}/)"
        )
        raise UserError(f"{listing}: does not exist{boxes}; data.{which}_split names the split")
    names = [
        text for line in read_lines(listing) if (text := line.decode(errors="replace").strip())
    ]
    if not names:
        raise UserError(f"{listing}: lists no images")
    inside, unique = Inside(root, links=cfg.follow_links), Unique("duplicate image id", findings)
    by_stem = {path.stem: path for path in image_files(root / IMAGES)}
    kinds = _names(cfg, labels)
    rules = LabelRules.of(cfg, kinds)
    records, paths = [], []
    for name in names:
        where = f"{listing}, {name!r}"
        if not unique.is_new(name, where):
            continue
        path = by_stem.get(name) or inside.join(root / IMAGES, f"{name}.jpg", where, findings)
        maps = [
            inside.join(root / folder, f"{name}.png", where, findings)
            for folder in (OF_CLASSES, OF_OBJECTS)
        ]
        if path is None or None in maps or not inside.holds(path, where, findings):
            continue
        if labels == "regions":
            record = dense_record(name, str(path), path, maps[0], rules, findings)  # type: ignore[arg-type]
        else:
            record = _objects_record(name, path, maps[0], maps[1], findings)  # type: ignore[arg-type]
        if record is not None:
            records.append(record)
            paths.append(path)
    return Split(records, ImageFiles(paths), kinds, dense=labels == "regions")


def _names(cfg: DataConfig, labels: Labels) -> dict[int, str]:
    if labels == "regions":
        names = dict(enumerate(cfg.labels or ("background", *CLASSES)))
        refuse_ignored(cfg, names)
        return names
    return dict(enumerate(cfg.labels or CLASSES, 1))


def _objects_record(
    name: str, path: Path, of_classes: Path, of_objects: Path, findings: Findings
) -> Record | None:
    """Record of an image with its objects; None, and a finding, if its label maps cannot be used."""
    for file in (of_classes, of_objects):
        if not os.path.isfile(file):
            findings.add("missing label map", str(path), str(file))
            return None
    header = read_header(path, str(path), findings)
    try:
        kinds, numbers = read_label_map(of_classes), read_label_map(of_objects)
        if kinds.shape != numbers.shape:
            raise ValueError(f"{of_objects} has another size than {of_classes}")
    except ValueError as error:
        findings.add("unreadable label map", str(path), str(error))
        return None
    height, width = kinds.shape
    if header is not None and (header.width, header.height) != (width, height):
        detail = f"{width} x {height} px, the image has {header.width} x {header.height}"
        findings.add("label map of another size", str(path), detail)
        return None
    masks = {number: rle for number, rle in rles_of(numbers).items() if number not in (0, VOID)}
    classes = [_majority(kinds[numbers == number]) for number in masks]
    columns = list(masks.values())
    crowds = [False] * len(columns)
    if classes and (void := (kinds == VOID) & ~np.isin(numbers, list(masks))).any():
        columns, crowds = [*columns, encode(void)], [*crowds, True]
        classes = [*classes, _majority(np.array(classes))]
    parts = np.array([bounds(mask) for mask in columns]).reshape(-1, 4)
    objects = Objects(
        boxes=from_corners(parts * [width, height, width, height]),
        classes=np.array(classes, dtype=np.int64),
        areas=np.zeros(len(columns)),
        iscrowd=np.array(crowds, dtype=bool),
        numbers=np.array([*masks, *([VOID] if len(columns) > len(masks) else [])], dtype=np.int64),
        masks=mask_column(columns),
    )
    digest = header.digest if header else ""
    return Record(
        *(name, str(path), width, height, objects, "object", digest), unreadable=header is None
    )


def _majority(values: np.ndarray) -> int:
    """The most frequent value that is a class; the background's if none is."""
    counts = np.bincount(values[values != VOID].astype(np.int64), minlength=1)
    return int(counts.argmax())
