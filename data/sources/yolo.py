"""Reader: YOLO, one text file an image.

`path/data.yaml` has `names` (a list, or a dictionary by id) and, under the names of the splits,
where their images are: a folder, a text file that lists images, or a list of these, relative to
`path` of the YAML or to its own folder. The labels of `.../images/a.jpg` are in `.../labels/a.txt`,
or beside the image where its path has no part `images`. A line is `class cx cy w h`, relative to the
image, or `class x y x y x y ...`, a polygon whose box is taken. An image with an empty label file has no
boxes. So has one without, but that is said, and many of them are not believed unless data.allow_unlabelled says so.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.record import LINE, label_file
from data.schema import Split
from data.sources.annotations import Boxes
from data.sources.box_formats import format_of
from data.sources.files import ImageFiles, Inside, existing_folder, image_files, read_lines
from data.sources.missing import note_without_file
from data.sources.segmentations import box_of_polygon
from data.sources.values import Unique, as_int, short
from errors import UserError
from settings.keys import DataConfig
from settings.plain_yaml import load_plain
from settings.tasks import Labels

NO_SPLITS = ("path", "nc", "names", "download", "roboflow", "yaml_file", "kpt_shape", "flip_idx")
"""Keys of a data.yaml that name no images"""

NO_LABELS = {"classes.txt", "labels.txt"}
"""Files beside labels that are none"""


def read_split(cfg: DataConfig, which: str, findings: Findings, labels: Labels = "boxes") -> Split:
    """The training or validation split ("train" or "val") of a YOLO dataset.

    Args:
        masks: whether objects get the masks of their polygons.

    Raises:
        UserError: for a missing folder or data.yaml, or a split that has no images.
    """
    assert cfg.path is not None
    masks = labels != "boxes"
    root = existing_folder(cfg.path)
    file = _yaml_file(root)
    content = _load(file)
    key = str(cfg.train_split if which == "train" else cfg.val_split)
    if key not in content:
        splits = [name for name in content if name not in NO_SPLITS]
        raise UserError(
            f"{file}: has no split {key!r} (data.{which}_split); it has {short(', '.join(map(str, splits)))}"
        )
    base = _base(root, content.get("path"))
    inside = Inside(root, links=cfg.follow_links)
    paths: list[Path] = []
    places = content[key] if isinstance(content[key], list) else [content[key]]
    for place in places:
        paths += _images(place, f"{file}, {key}", base, inside, findings)
    paths = [path for path in paths if inside.holds(path, str(path), findings)]
    if not paths:
        raise UserError(f"{file}: split {key!r} ({short(content[key])}) has no images")
    keypoints, form = "kpt_shape" in content, format_of(cfg)
    unique = Unique("duplicate image id", findings)
    records, kept, without = [], [], []
    for path in paths:
        image_id = os.path.relpath(path, root)
        if unique.is_new(image_id, str(path)):
            lines = label_file(path)
            if not (there := os.path.isfile(lines)):
                without.append(path)
            usable = there and inside.holds(lines, str(lines), findings)
            boxes = _boxes(path, lines if usable else None, keypoints, findings, masks)
            records.append(boxes.record(image_id, path, None, form))
            kept.append(path)
    if not cfg.allow_unlabelled:
        note_without_file(without, key, len(kept), root, findings)
    _note_labels_without_image(paths, findings)
    return Split(records, ImageFiles(kept), _names(content, file, findings))


def _yaml_file(root: Path) -> Path:
    """data.yaml, or the folder's only other YAML file."""
    others = sorted(file for file in root.iterdir() if file.suffix in (".yaml", ".yml"))
    named = root / "data.yaml"
    return others[0] if len(others) == 1 and not os.path.isfile(named) else named


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: does not exist; data.path is the folder that holds data.yaml")
    try:
        content = load_plain(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {short(str(error))}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected keys names, train and val, not {short(content)}")
    return {str(key): value for key, value in content.items()}


def _base(root: Path, given: Any) -> Path:
    """The folder that splits are relative to; `path` is often that of another machine."""
    if isinstance(given, str) and "\0" not in given:
        folder = Path(os.path.normpath(root / given))
        if folder.is_relative_to(root) and os.path.isdir(folder):
            return folder
    return root


def _images(
    place: Any, where: str, base: Path, inside: Inside, findings: Findings
) -> Iterator[Path]:
    """The images of one entry of a split."""
    if not isinstance(place, str) or not place:
        findings.add("broken row", where, f"{short(place)}, neither a folder nor a list of images")
        return
    if place.startswith("../") and not os.path.exists(base / place):
        place = place[3:]  # exports whose paths begin one folder too deep; YOLO tools read them so
    path = inside.join(base, place, where, findings)
    if path is None:
        return
    if os.path.isdir(path):
        yield from image_files(path)
    elif path.suffix == ".txt" and os.path.isfile(path):
        for number, line in enumerate(read_lines(path), 1):
            name = line.decode(errors="replace").strip()
            if name:
                folder = path.parent if name.startswith("./") else base
                image = inside.join(folder, name, f"{path}, line {number}", findings)
                if image is not None:
                    yield image
    else:
        findings.add("broken row", where, f"{path} is neither a folder nor a list of images")


def _names(content: dict[str, Any], file: Path, findings: Findings) -> dict[int, str]:
    given = content.get("names")
    if given is None:
        number = as_int(content.get("nc")) or 0
        return {index: str(index) for index in range(min(number, 100_000))}
    items = list(given.items()) if isinstance(given, dict) else given
    if isinstance(items, list) and not isinstance(given, dict):
        items = list(enumerate(items))
    if not isinstance(items, list):
        findings.add("broken row", f"{file}, names", f"{short(given)}, no list of names")
        return {}
    names = {}
    for key, name in items:
        category = as_int(key)
        if category is None or category < 0 or isinstance(name, (list, dict, set)) or name is None:
            findings.add("broken row", f"{file}, names", f"{short(key)}: {short(name)}")
        else:
            names[category] = str(name)
    return names


def _boxes(
    image: Path, file: Path | None, keypoints: bool, findings: Findings, masks: bool
) -> Boxes:
    """What is on an image by its label file; nothing without one."""
    boxes = Boxes(str(image), LINE, findings, masks)
    for number, line in enumerate(read_lines(file) if file else (), 1):
        values = line.split()
        if values:
            _take(boxes, number, values[:5] if keypoints else values)
    return boxes


def _take(boxes: Boxes, number: int, values: list[bytes]) -> None:
    try:
        floats = [float(value) for value in values]
    except ValueError:
        boxes.broken(number, f"{short(b' '.join(values[:6]))} are no numbers")
        return
    category = as_int(floats[0])
    if category is None or category < 0:
        boxes.broken(number, f"the class is {short(values[0])}")
    elif len(floats) == 5:
        boxes.add(number, floats[1:], category)
    elif (box := box_of_polygon(floats[1:])) is not None:
        boxes.add(number, box, category, segmentation=[floats[1:]], box_format="xywh_relative")
    else:
        boxes.broken(number, f"{len(floats)} numbers: neither class and box nor class and polygon")


def _note_labels_without_image(paths: list[Path], findings: Findings) -> None:
    """A finding for each file among the labels whose image does not exist, in whatever split."""
    labels = {label_file(path) for path in paths}
    for labels_in, images_in in sorted({(label_file(p).parent, p.parent) for p in paths}):
        if labels_in == images_in:
            continue  # text files beside images may be anything
        stems = {path.stem for path in image_files(images_in) if path.parent == images_in}
        for file in sorted(labels_in.glob("*.txt")):
            if file not in labels and file.stem not in stems and file.name not in NO_LABELS:
                findings.add("annotation without image", str(file))
