"""Where a dataset's parts usually lie: found where the configuration does not say, and said in a line."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.images.headers import names_of_images
from settings.keys import DataConfig
from settings.label_checks import VALIDATION
from settings.plain_yaml import load_plain

NO_SPLIT = "none"
"""As data.val_split: none, even if one lies there"""
COCO_FILES = (
    *(
        "annotations/{s}.json",
        "annotations/instances_{s}.json",
        "annotations/instances_{s}2017.json",
    ),
    *("{s}/_annotations.coco.json", "{s}/annotations.json", "annotations/{s}2017.json"),
    *(
        "{s}.json",
        "instances_{s}.json",
        "instances_{s}2017.json",
        "annotations/{s}_annotations.json",
    ),
    "annotations/panoptic_{s}2017.json",
)
"""Annotation files of a COCO dataset, below its folder"""
COCO_FOLDERS = (
    *("{s}", "images/{s}", "{s}/images", "{s}2017", "images/{s}2017"),
    *("images", "JPEGImages", "img", "data", "."),
)
"""Folders of its images"""
LOOKED_UP = 32
"""Image names by which a folder is known"""
MOST_FOLDERS = 2_000
"""That are searched for images"""


def located(cfg: DataConfig, findings: Findings) -> DataConfig:
    """The configuration with the parts of a dataset that were found where it does not name them."""
    if cfg.path is None or cfg.source not in ("coco", "imagefolder", "voc", "yolo", "label_maps"):
        return dataclasses.replace(cfg, val_split=None) if cfg.val_split == NO_SPLIT else cfg
    root = Path(cfg.path).expanduser()
    if cfg.source == "coco":
        cfg = _coco_file(cfg, "train", cfg.train_split, root, findings)
    here = (root / "metadata.jsonl").is_file() and not (root / cfg.train_split).is_dir()
    if cfg.source == "imagefolder" and here:
        findings.note("training images: those of the folder itself, which has metadata.jsonl")
        cfg = dataclasses.replace(cfg, train_split=".")
    if cfg.val_split == NO_SPLIT or (cfg.val_split is None and cfg.val_on_train):
        return dataclasses.replace(cfg, val_split=None)
    if cfg.val_split is None and cfg.train_split not in VALIDATION:
        found = next((name for name in VALIDATION if has_split(cfg, name, root)), None)
        if found is not None:
            findings.note(
                f"validation split: {found}, which lies beside the training split (--data.val_split none does without)"
            )
            cfg = dataclasses.replace(cfg, val_split=found)
    if cfg.source == "coco" and cfg.val_split is not None:
        cfg = _coco_file(cfg, "val", cfg.val_split, root, findings)
    return cfg


def has_split(cfg: DataConfig, name: str, root: Path) -> bool:
    """Whether a dataset has a split of this name, as far as names of files show."""
    if cfg.source == "coco":
        return cfg.val_annotations is not None or coco_file(root, name) is not None
    if cfg.source == "imagefolder":
        return (root / name / "metadata.jsonl").is_file()
    if cfg.source == "yolo":
        return _yolo_has(root, name)
    if cfg.source == "voc":
        sets = root / "ImageSets"
        if sets.is_dir():
            return any((sets / kind / f"{name}.txt").is_file() for kind in ("Main", "Segmentation"))
        return any((root / name).glob("*.xml"))
    folders = [root / name, *(root / over / name for over in ("images", "img_dir"))]
    return any(next(names_of_images(folder), None) is not None for folder in folders)


def _yolo_has(root: Path, name: str) -> bool:
    files = sorted(file for file in root.glob("*.y*ml") if file.suffix in (".yaml", ".yml"))
    named = root / "data.yaml"
    if not files:
        return False
    try:
        content = load_plain(named if named.is_file() else files[0])
    except (OSError, ValueError):
        return False
    place = content.get(name) if isinstance(content, dict) else None
    if not isinstance(place, str) or "\0" in place:
        return isinstance(place, list) and bool(place)
    given = content.get("path")
    inner = place.removeprefix("../")
    bases = [root, *([root / given] if isinstance(given, str) and "\0" not in given else [])]
    return any((base / own).exists() for base in bases for own in (place, inner))


def coco_file(root: Path, split: str) -> str | None:
    """The annotation file of a split, relative to the dataset's folder."""
    names = (name.format(s=split) for name in COCO_FILES)
    return next((name for name in names if (root / name).is_file()), None)


def _coco_file(
    cfg: DataConfig, which: str, split: str, root: Path, findings: Findings
) -> DataConfig:
    key = f"{which}_annotations"
    if getattr(cfg, key) is not None:
        return cfg
    found = coco_file(root, split) or (lone_file(root) if which == "train" else None)
    if found is None or found == COCO_FILES[0].format(s=split):
        return cfg
    findings.note(f"data.{key}: {found}, found by its name")
    changed: dict[str, Any] = {key: found}
    return dataclasses.replace(cfg, **changed)


def lone_file(root: Path) -> str | None:
    """The only JSON file of a dataset that has one."""
    files = [*root.glob("*.json"), *root.glob("annotations/*.json")]
    files = [f for f in files if f.name not in ("categories.json", "id2label.json")]
    return files[0].relative_to(root).as_posix() if len(files) == 1 else None


def coco_folder(
    root: Path, split: str, which: str, images: Sequence[Any], findings: Findings
) -> Path:
    """The folder with the images of a COCO file, by its first usual place that has them.

    Args:
        images: as the file lists them.
    """
    named = root / split
    names = sampled([e.get("file_name") for e in images if isinstance(e, dict)])
    if holds_most(named, names) or not names:
        return named
    for place in COCO_FOLDERS:
        folder = root / place.format(s=split)
        if holds_most(folder, names):
            shown = "the dataset's folder itself" if place == "." else place.format(s=split)
            findings.note(f"{which} images: {shown}, which has the files that the annotations name")
            return folder
    return named


def sampled(names: Iterable[Any]) -> list[str]:
    """Some names of images, from the whole list."""
    usable = [n for n in names if isinstance(n, str) and n and "\0" not in n and _stays_inside(n)]
    return usable[:: max(1, len(usable) // LOOKED_UP)][:LOOKED_UP]


def _stays_inside(name: str) -> bool:
    inner = os.path.normpath(name.replace("\\", "/"))
    return not os.path.isabs(inner) and inner.split(os.sep)[0] != os.pardir


def holds_most(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder has at least half of the files."""
    found = sum(os.path.isfile(folder / name.replace("\\", "/")) for name in names)
    return bool(names) and 2 * found >= len(names)


def folder_that_has(root: Path, names: Sequence[str]) -> Path | None:
    """A folder below `root` that holds most of the files, wherever it is."""
    wanted = {Path(name.replace("\\", "/")).name: name for name in names}
    for folder in _folders_with(root, set(wanted)):
        depth = len(Path(names[0].replace("\\", "/")).parts) - 1
        above = folder.parents[depth - 1] if depth else folder
        if above.is_relative_to(root) and holds_most(above, names):
            return above
    return None


def _folders_with(root: Path, names: set[str]) -> Iterator[Path]:
    for number, (folder, _, files) in enumerate(os.walk(root)):
        if number >= MOST_FOLDERS:
            return
        if not names.isdisjoint(files):
            yield Path(folder)
