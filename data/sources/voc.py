"""Reader: Pascal VOC, one XML file an image.

Either the original layout, `path/Annotations/*.xml` and `path/JPEGImages/`, with the images of a
split listed in `path/ImageSets/Main/<split>.txt` (all of them, if there are no such lists); or one
folder a split, `path/<split>/*.xml` beside the images.

Corners are 1-based and inclusive, as VOC defines them: xmin 1 and xmax 500 is the whole width of an
image of 500 px. In pixel edges that is 0 to 500: x = xmin - 1, width = xmax - xmin + 1. Files of
tools that count from 0 come out one pixel too far left and up: `data.guesses` says so, and data.box_format xyxy
reads them.

Class ids are places in `data.labels`, or else in the sorted names of both splits. `difficult`
objects become `iscrowd`: no targets in training, neither right nor wrong in evaluation.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from data.findings import Findings
from data.record import Record
from data.schema import Split
from data.sources import voc_masks
from data.sources.annotations import Boxes
from data.sources.box_formats import format_of
from data.sources.files import (
    ImageFiles,
    Inside,
    existing_folder,
    image_files,
    note_unlisted,
    read_lines,
)
from data.sources.values import Unique, as_size, short
from data.sources.xml_tree import XmlError, parse_xml
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels

ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Layout:
    """Where the files of a split are."""

    annotations: Path
    images: Path
    names: list[str]
    """The split's XML files below `annotations`, without .xml"""
    source: str
    """What lists them, for messages"""


def read_split(cfg: DataConfig, which: str, findings: Findings, labels: Labels = "boxes") -> Split:
    """The training or validation split ("train" or "val") of a Pascal VOC dataset.

    Args:
        labels: boxes are those of XML files, everything else is as `data.sources.voc_masks` says.

    Raises:
        UserError: for a missing folder, or a split that lists no images.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    if labels == "segments":
        raise UserError("data.source voc: has no panoptic segments; set model.task to another one")
    if labels != "boxes":
        return voc_masks.read_split(cfg, which, root, findings, labels)
    layout = _layout(cfg, which, root)
    if not layout.names:
        raise UserError(f"{layout.source}: lists no images")
    names = cfg.labels if cfg.labels is not None else _names_used(cfg, root)
    reader = _Reader(cfg, root, layout, {name: index for index, name in enumerate(names)}, findings)
    records, paths = [], []
    for name in layout.names:
        found = reader.record(name)
        if found is not None:
            records.append(found[0])
            paths.append(found[1])
    if which == "train" or layout.images != root / IMAGES:  # both splits share that folder
        annotated = set(_xml_names(layout.annotations))
        others = [path for stem, path in reader.by_stem.items() if stem in annotated]
        note_unlisted(layout.images, [*reader.listed, *others], findings)
    return Split(records, ImageFiles(paths), dict(enumerate(names)))


class _Reader:
    def __init__(
        self, cfg: DataConfig, root: Path, layout: Layout, ids: dict[str, int], findings: Findings
    ):
        self.box_format = format_of(cfg)
        self.layout = layout
        self.ids = ids
        self.findings = findings
        self.inside = Inside(root, layout.annotations, layout.images, links=cfg.follow_links)
        self.unique = Unique("duplicate image id", findings)
        self.listed: list[Path] = []
        # A file's own <filename> is often stale, or of the tool that wrote it; the stem decides.
        self.by_stem = {_stem(path, layout.images): path for path in image_files(layout.images)}

    def record(self, name: str) -> tuple[Record, Path] | None:
        """Record and image file of one XML file; None, and a finding, if it is broken."""
        layout, findings = self.layout, self.findings
        if not self.unique.is_new(name, f"{layout.source}, {name!r}"):
            return None
        file = self.inside.join(layout.annotations, f"{name}.xml", layout.source, findings)
        if file is None:
            return None
        where = str(file)
        if not os.path.isfile(file):
            if name not in self.by_stem:  # otherwise it is an image without annotation
                findings.add("broken row", where, f"listed in {layout.source}, absent")
            return None
        root = read_xml(file, findings)
        if root is None:
            return None
        path = self._image(root, name, where)
        if path is None:
            return None
        self.listed.append(path)
        boxes = Boxes(where, "object", findings)
        for number, item in enumerate(root.findall("object"), 1):
            self._take(boxes, number, item)
        size = as_size(_text(root, "size/width"), _text(root, "size/height"))
        return boxes.record(name, path, size, self.box_format), path

    def _image(self, root: Element, name: str, where: str) -> Path | None:
        given = _text(root, "filename")
        named = None
        if given:
            named = self.inside.join(self.layout.images, given, where, self.findings)
            if named is None:
                return None
        named = self.by_stem.get(name) or named or self.layout.images / f"{name}.jpg"
        return named if self.inside.holds(named, where, self.findings) else None

    def _take(self, boxes: Boxes, number: int, item: Element) -> None:
        name = _text(item, "name")
        corners = [as_number(_text(item, f"bndbox/{key}")) for key in CORNERS]
        if not name:
            boxes.broken(number, "it has no name")
        elif None in corners:
            texts = [_text(item, f"bndbox/{key}") for key in CORNERS]
            boxes.broken(number, f"bndbox is {short(', '.join(map(str, texts)))}")
        elif name not in self.ids:
            known = ", ".join(list(self.ids)[:20])
            self.findings.add(
                "unknown category",
                f"{boxes.where}, object {number}",
                f"{name!r}, not among {known}",
            )
        else:
            difficult = _text(item, "difficult") or "0"
            crowd = {"0": 0, "1": 1}.get(difficult, difficult)  # of a text any other is a finding
            boxes.add(number, corners, self.ids[name], None, crowd)


def read_xml(file: Path, findings: Findings) -> Element | None:
    """Root of an annotation file; None, and a finding, if it is no XML or no annotation."""
    try:
        root = parse_xml(file.read_bytes())
    except (XmlError, OSError) as error:
        findings.add("broken row", str(file), str(error))
        return None
    if root.tag != "annotation":
        findings.add("broken row", str(file), f"its root is <{root.tag}>, not <annotation>")
        return None
    return root


def as_number(text: str | None) -> float | None:
    """The number that a text gives; None if it gives none."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _layout(cfg: DataConfig, which: str, root: Path) -> Layout:
    split = str(cfg.train_split if which == "train" else cfg.val_split)
    annotations, images = root / ANNOTATIONS, root / IMAGES
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if listing.is_file():
        return Layout(annotations, images, _image_set(listing), str(listing))
    folder = root / split
    if folder.is_dir():
        return Layout(folder, folder, _xml_names(folder), f"{folder}/*.xml")
    lone = which == "train" and cfg.val_split is None and not listing.parent.is_dir()
    if lone and annotations.is_dir():
        return Layout(annotations, images, _xml_names(annotations), f"{annotations}/*.xml")
    raise UserError(
        f"data.path {root}: neither {listing.relative_to(root)} nor a folder {split} with XML files; "
        f"data.{which}_split names the split"
    )


def _image_set(listing: Path) -> list[str]:
    """Names of an image set; in a set of one class, each is followed by -1, 0 or 1."""
    names = []
    for line in read_lines(listing):
        name = line.decode(errors="replace").strip()
        head, _, mark = name.rpartition(" ")
        names.append(head.strip() if mark in ("-1", "0", "1") and head else name)
    return [name for name in names if name]


def _xml_names(folder: Path) -> list[str]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file.stem for file in files if file.suffix.lower() == ".xml")


def _names_used(cfg: DataConfig, root: Path) -> list[str]:
    """Sorted class names of both splits, so that a class has the same id in both."""
    splits = ["train"] if cfg.val_split is None else ["train", "val"]
    return sorted({name for which in splits for name in _names_of(_layout(cfg, which, root), root)})


def _names_of(layout: Layout, root: Path) -> Iterator[str]:
    unheard = Findings()  # they are made when the split itself is read
    inside = Inside(root, layout.annotations)
    for name in layout.names:
        file = inside.join(layout.annotations, f"{name}.xml", "", unheard)
        content = read_xml(file, unheard) if file is not None and os.path.isfile(file) else None
        for item in [] if content is None else content.findall("object"):
            if text := _text(item, "name"):
                yield text


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _text(element: Element, path: str) -> str | None:
    text = element.findtext(path)
    return None if text is None else text.strip()
