"""One little dataset of segments, written in every form that can be read."""

import json
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from data.regions import segment_map
from painted import SIZES, SPLITS
from settings.keys import DataConfig

NAMES = ("person", "car", "sky", "road")
THINGS, STUFF = ("person", "car"), ("sky", "road")
COCO_IDS = (1, 3, 7, 90)
NUMBERS = (0, 7, 300, 70_000, 256, 65_536, 2**24 - 1, 9)
"""What the files call the parts of an image; 0 is no segment"""
CLASSES = (None, 0, 0, 1, 2, 3, 0, 2)
"""Their classes: two persons, a car, sky, road, a crowd of persons, and more of the sky"""
CROWD, MORE_SKY = 6, 7
SEGMENTS = np.array([0, 1, 2, 3, 4, 5, 0, 4])
"""Their segments, as `data.regions.segment_map` numbers them"""
COLOURS = np.array(
    [[0, 0, 0], [230, 20, 20], [250, 150, 20], [230, 230, 20]]
    + [[20, 90, 250], [130, 130, 130], [20, 230, 90], [150, 20, 230]],
    np.uint8,
)


def parts_of(number: int) -> np.ndarray:
    """The place in NUMBERS of every pixel of image `number`; each part is there."""
    width, height = SIZES[number % 3]
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, len(NUMBERS), height * width // 64)
    blocks[: len(NUMBERS)] = np.arange(len(NUMBERS))
    blocks = rng.permutation(blocks).reshape(height // 8, width // 8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def wanted(number: int) -> np.ndarray:
    """Number of the segment of every pixel."""
    return SEGMENTS[parts_of(number)]


def wanted_regions(number: int) -> np.ndarray:
    """Class + 1 of every pixel, those of the crowd as well."""
    return np.array([0 if kind is None else kind + 1 for kind in CLASSES])[parts_of(number)]


def as_png(parts: np.ndarray) -> Image.Image:
    numbers = np.array(NUMBERS)[parts]
    return Image.fromarray(
        np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], 2).astype("u1")
    )


def listed(ids=range(4)) -> list[dict[str, int]]:
    """segments_info of every image, where class c has the category id ids[c]."""
    return [
        {"id": NUMBERS[part], "category_id": ids[CLASSES[part]], "iscrowd": int(part == CROWD)}
        for part in range(1, len(NUMBERS))
    ]


def write_pictures(images: Path, maps: Path, split: str, suffix: str = ".jpg") -> list[str]:
    """Write the images, whose colours follow their parts, and the label maps; their stems."""
    maps.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    for number in SPLITS[split]:
        parts = parts_of(number)
        Image.fromarray(COLOURS[parts]).save(images / f"{number:03d}{suffix}", quality=95)
        as_png(parts).save(maps / f"{number:03d}.png")
    return [f"{number:03d}" for number in SPLITS[split]]


def write_coco(root: Path, suffix: str = ".jpg") -> DataConfig:
    """COCO's panoptic files."""
    for split in SPLITS:
        file = root / f"annotations/{split}.json"
        stems = write_pictures(root / split, file.with_suffix(""), split, suffix)
        images, annotations = [], []
        for image_id, stem in enumerate(stems, 10):
            images.append({"id": image_id, "file_name": f"{stem}{suffix}"})
            entry = {"image_id": image_id, "file_name": f"{stem}.png"}
            annotations.append({**entry, "segments_info": listed(COCO_IDS)})
        categories = [
            {"id": category, "name": name, "isthing": int(name in THINGS)}
            for category, name in zip(COCO_IDS, NAMES, strict=True)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        file.write_text(json.dumps(content))
    return DataConfig("coco", str(root), val_split="val")


def write_imagefolder(root: Path) -> DataConfig:
    """An image folder whose metadata.jsonl has label maps and segments."""
    for split in SPLITS:
        stems = write_pictures(root / split, root / split / "maps", split)
        rows = [
            {
                "file_name": f"{stem}.jpg",
                "label_map_file_name": f"maps/{stem}.png",
                "segments_info": listed(),
            }
            for stem in stems
        ]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "categories.json").write_text(json.dumps(NAMES))
    return DataConfig("imagefolder", str(root), val_split="val", stuff=list(STUFF))


def write_hub(root: Path, **changes) -> DataConfig:
    """A local dataset in Hub format."""
    (root / "data").mkdir(parents=True)
    segment = {key: datasets.Value("int64") for key in ("id", "category_id", "iscrowd")}
    features = {"image": datasets.Image(), "label": datasets.Image(), "segments_info": [segment]}
    files = root.parent / "files"
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [
            {
                "image": {"bytes": (files / f"{stem}.jpg").read_bytes(), "path": None},
                "label": {"bytes": (files / f"{stem}.png").read_bytes(), "path": None},
                "segments_info": listed(),
            }
            for stem in write_pictures(files, files, split)
        ]
        table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        table.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
    given = {"source": "hub", "path": str(root), "val_split": "validation"}
    return DataConfig(**given | {"labels": list(NAMES), "stuff": list(STUFF)} | changes)


def read_segments(split, taxonomy) -> list[tuple[np.ndarray, np.ndarray]]:
    """The segment map of each record of a split that was read."""
    return [
        segment_map(r.objects, (r.height, r.width), taxonomy.stuff, taxonomy.background)
        for r in split.records
    ]
