"""The small dataset that every framework is given, in the layout that it reads."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
NUM_TRAIN, NUM_VAL = 21, 5
"""Neither is a multiple of a batch; what is left over is where processes differ"""
OBJECTS = (1, 5, 2, 8, 1, 3)
"""Objects of the images, over and over; unequal, since losses are divided by their number"""
NAMES = ("square", "bar")


def write_dataset(folder: Path, equal: bool = False, broken: bool = False) -> Path:
    """21 images for training, 5 for validation, all of 64 x 64 px, as COCO files.

    Args:
        equal: all images are the same one, so that only augmentation makes them differ.
        broken: training image 6 is a JPEG that was cut in its middle.
    """
    for split, num, seed in (("train", NUM_TRAIN, 0), ("val", NUM_VAL, 1)):
        images: list[dict] = []
        annotations: list[dict] = []
        (folder / split).mkdir(parents=True)
        for number in range(num):
            rng = np.random.default_rng([seed, 0 if equal else number])
            name = f"{split}{number:03d}.jpg"
            boxes = boxes_of(rng, OBJECTS[0 if equal else number % len(OBJECTS)])
            paint(rng, boxes).save(folder / split / name, quality=95)
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            for x, y, w, h, kind in boxes:
                annotations.append(
                    {
                        **{"id": len(annotations) + 1, "image_id": number, "bbox": [x, y, w, h]},
                        **{"category_id": kind + 1, "area": w * h, "iscrowd": 0},
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        categories = [{"id": i + 1, "name": n, "supercategory": n} for i, n in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    if broken:
        file = folder / "train" / "train006.jpg"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return folder


def boxes_of(rng: np.random.Generator, num: int) -> list[tuple[int, int, int, int, int]]:
    """(x, y, w, h, class) of a square about the centre, where an untrained DETR looks, and of bars."""
    x, y = rng.integers(13, 20, 2)
    boxes = [(int(x), int(y), 32, 32, 0)]
    for _ in range(num - 1):
        left, top = rng.integers(0, SIDE - 16, 2)
        boxes.append((int(left), int(top), 16, 8, 1))
    return boxes


def paint(rng: np.random.Generator, boxes: list[tuple[int, int, int, int, int]]) -> Image.Image:
    pixels = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    for x, y, w, h, kind in boxes:
        pixels[y : y + h, x : x + w] = ((250, 230, 30), (40, 90, 250))[kind]
    return Image.fromarray(pixels)


def coco(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def as_parquet(folder: Path) -> Path:
    """The dataset as transformers' scripts for detection load it, with the images where they are."""
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    out = folder / "parquet"
    if out.exists():
        return out
    objects = {
        "id": List(Value("int64")),
        "area": List(Value("float32")),
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(names=list(NAMES))),
    }
    features = Features({"image_id": Value("int64"), "image": Image(), "objects": objects})
    for split, theirs in (("train", ["train"]), ("val", ["validation", "test"])):
        rows = rows_of(folder, split)
        for name in theirs:
            file = out / "data" / f"{name}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            # The rows stay paths: a bad file is met when the training reads it, as on a disk.
            Dataset.from_list(rows, features=features).to_parquet(str(file))
    return out


def rows_of(folder: Path, split: str) -> list[dict]:
    content = coco(folder, split)
    rows = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        objects = {
            "id": [a["id"] for a in own],
            "area": [a["area"] for a in own],
            "bbox": [a["bbox"] for a in own],
            "category": [a["category_id"] - 1 for a in own],
        }
        path = str(folder / split / image["file_name"])
        rows.append({"image_id": image["id"], "image": path, "objects": objects})
    return rows


def as_roboflow(folder: Path) -> Path:
    """The dataset as RF-DETR loads it: a COCO file beside the images of each split."""
    out = folder / "roboflow"
    if out.exists():
        return out
    for split, theirs in (("train", ["train"]), ("val", ["valid", "test"])):
        for name in theirs:
            (out / name).mkdir(parents=True)
            for file in (folder / split).iterdir():
                os.symlink(file, out / name / file.name)
            text = (folder / "annotations" / f"{split}.json").read_text()
            (out / name / "_annotations.coco.json").write_text(text)
    return out
