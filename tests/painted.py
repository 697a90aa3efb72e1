"""One little dataset of label maps, written in every form that can be read."""

import json
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from data.build import read_data
from data.findings import Findings
from data.regions import label_map
from settings.keys import DataConfig

NAMES = ("sky", "road", "car")
VOID = 255
"""Pixels of which nobody knows the class"""
SIZES = [(48, 32), (32, 48), (40, 40)]
"""(width, height) of the images, over and over"""
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[[0, 1, 2, VOID]] = [(40, 90, 220), (110, 60, 60), (230, 210, 20), (0, 0, 0)]
SPLITS = {"train": [0, 1, 2, 3], "val": [4, 5]}
"""Numbers of the images"""


def labels_of(number: int) -> np.ndarray:
    """The label map of image `number`, uint8 [H, W]: some of the three classes, and VOID."""
    width, height = SIZES[number % 3]
    rng = np.random.default_rng(number)
    blocks = rng.choice([0, 1, 2, VOID], (height // 8, width // 8))
    return blocks.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


def write_images(folder: Path, split: str = "train", suffix: str = ".jpg") -> list[str]:
    """Write the images, whose colours follow their label maps; their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    stems = [f"{number:03d}" for number in SPLITS[split]]
    for stem, number in zip(stems, SPLITS[split], strict=True):
        Image.fromarray(COLOURS[labels_of(number)]).save(folder / f"{stem}{suffix}", quality=95)
    return stems


def as_grey(labels):
    return Image.fromarray(labels)


def as_palette(labels):
    picture = Image.fromarray(labels)
    picture.putpalette(COLOURS.ravel().tolist())
    assert picture.mode == "P"
    return picture


def as_wide(labels):
    return Image.fromarray(labels.astype(np.uint16))


def as_rgb(labels):
    return Image.fromarray(labels[..., None].repeat(3, axis=2))


PICTURES = {
    "grey": (as_grey, ".png"),
    "palette": (as_palette, ".png"),
    "16 bits": (as_wide, ".png"),
    "three equal channels": (as_rgb, ".png"),
    "transparency": (lambda labels: as_grey(labels).convert("LA"), ".png"),
    "16-bit TIFF": (as_wide, ".tif"),
    "BMP": (as_grey, ".bmp"),
    "GIF": (as_palette, ".gif"),
}
"""Ways to keep the numbers of a label map: (picture of it, suffix)"""


def write_maps(
    folder: Path, split: str = "train", ending: str = "", way: str = "grey", edit=lambda a: a
) -> list[str]:
    """Write the label maps, each changed by `edit`; their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, suffix = PICTURES[way]
    names = [f"{number:03d}{ending}{suffix}" for number in SPLITS[split]]
    for name, number in zip(names, SPLITS[split], strict=True):
        picture(edit(labels_of(number))).save(folder / name, optimize=False)  # GIF: as numbered
    return names


def write_folders(
    root: Path, images: str = "images/{split}", maps: str = "annotations/{split}", **how
) -> DataConfig:
    """Folders of images and of label maps, which `how` writes as `write_maps` has it."""
    for split in SPLITS:
        write_images(root / images.format(split=split), split)
        write_maps(root / maps.format(split=split), split, **how)
    return DataConfig("label_maps", str(root), val_split="val", labels=list(NAMES))


def write_imagefolder(root: Path, key: str = "label_map_file_name") -> DataConfig:
    """An image folder whose metadata.jsonl names the label maps."""
    for split in SPLITS:
        stems = write_images(root / split, split)
        maps = write_maps(root / split / "maps", split)
        rows = [
            {"file_name": f"{stem}.jpg", key: f"maps/{name}"}
            for stem, name in zip(stems, maps, strict=True)
        ]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return DataConfig("imagefolder", str(root), val_split="val")


def write_hub(root: Path, column: str = "annotation", **changes) -> DataConfig:
    """A local dataset in Hub format with a column of label maps."""
    (root / "data").mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), column: datasets.Image()})
    for split, name in (("train", "train"), ("val", "validation")):
        stems = write_images(root.parent / "files", split)
        maps = write_maps(root.parent / "files", split)
        files = [(f"{stem}.jpg", label_map) for stem, label_map in zip(stems, maps, strict=True)]
        cells = [
            [{"bytes": (root.parent / "files" / file).read_bytes(), "path": None} for file in pair]
            for pair in files
        ]
        rows = [dict(zip(("image", column), pair, strict=True)) for pair in cells]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
    return DataConfig(
        **{"source": "hub", "path": str(root), "val_split": "validation", "labels": list(NAMES)}
        | changes
    )


def write_voc(root: Path) -> DataConfig:
    """The original layout, without the masks of objects."""
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split in SPLITS:
        stems = write_images(root / "JPEGImages", split)
        write_maps(root / "SegmentationClass", split, way="palette")
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(stems) + "\n")
    return DataConfig("voc", str(root), val_split="val", labels=list(NAMES))


def wanted(number: int) -> np.ndarray:
    """What `data.regions.label_map` has to make of image `number`."""
    labels = labels_of(number).astype(int)
    return np.where(labels == VOID, 0, labels + 1)


def read_maps(split) -> list[np.ndarray]:
    """The label map of each record of a split that was read."""
    return [label_map(record.objects, (record.height, record.width)) for record in split.records]


def found(cfg: DataConfig, labels="regions"):
    """(kind, where and detail) of all findings, and the data."""
    findings = Findings()
    data = read_data(cfg, 0, findings, labels)
    return [(f.kind, f"{f.where}: {f.detail}") for f in findings], data
