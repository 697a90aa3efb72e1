"""The small dataset that every framework is given, in the layout that it reads."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

SIDE = 64
NUM_TRAIN, NUM_VAL = 21, 5
"""Neither is a multiple of a batch; what is left over is where processes differ"""
OBJECTS = (1, 5, 2, 8, 1, 3)
"""Objects of the images, over and over; unequal, since losses are divided by their number"""
NAMES = ("square", "bar")


def write_dataset(folder: Path, equal: bool = False, broken: bool = False) -> Path:
    """21 images for training, 5 for validation, all of 64 x 64 px, as COCO files.

    Args:
        equal: all training images are the same one, so that only augmentation makes them differ.
        broken: training image 6 is a JPEG that was cut in its middle.
    """
    for split, num, seed in (("train", NUM_TRAIN, 0), ("val", NUM_VAL, 1)):
        images: list[dict] = []
        annotations: list[dict] = []
        (folder / split).mkdir(parents=True)
        for number in range(num):
            content = 0 if equal and split == "train" else number
            rng = np.random.default_rng([seed, content])
            name = f"{split}{number:03d}.jpg"
            boxes = boxes_of(rng, OBJECTS[content % len(OBJECTS)])
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
        told = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(told))
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


def paint(rng: np.random.Generator, boxes: list[tuple[int, int, int, int, int]]) -> PilImage.Image:
    pixels = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    for x, y, w, h, kind in boxes:
        pixels[y : y + h, x : x + w] = ((250, 230, 30), (40, 90, 250))[kind]
    return PilImage.fromarray(pixels)


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


def as_mask_parquet(folder: Path) -> Path:
    """The dataset as transformers' scripts for instance segmentation load it: a picture of classes in red
    and of numbers of objects in green beside each image; boxes are the masks."""
    from datasets import Dataset, Features, Image, Value

    out = folder / "masks"
    if out.exists():
        return out
    classes = {"background": 0, **{name: number + 1 for number, name in enumerate(NAMES)}}
    features = Features(
        {
            "image": Image(),
            "annotation": Image(),
            "semantic_class_to_id": {name: Value("int64") for name in classes},
        }
    )
    (out / "pictures").mkdir(parents=True)
    for split, theirs in (("train", "train"), ("val", "validation")):
        rows = []
        for image in rows_of(folder, split):
            numbers = numbers_of(image["objects"]["bbox"])
            kinds = np.array([0, *(kind + 1 for kind in image["objects"]["category"])], np.uint8)
            pixels = np.stack([kinds[numbers], numbers, np.zeros_like(numbers)], -1)
            file = out / "pictures" / f"{split}{image['image_id']}.png"
            PilImage.fromarray(pixels).save(file)
            row = {"image": image["image"], "annotation": str(file)}
            rows.append({**row, "semantic_class_to_id": classes})
        file = out / "data" / f"{theirs}-00000-of-00001.parquet"
        file.parent.mkdir(exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(str(file))
    return out


def numbers_of(boxes: list) -> np.ndarray:
    """[SIDE, SIDE] which object is seen at each pixel, from 1 on; later ones lie on earlier ones."""
    numbers = np.zeros((SIDE, SIDE), np.uint8)
    for number, (x, y, w, h) in enumerate(boxes):
        numbers[y : y + h, x : x + w] = number + 1
    return numbers


def with_masks(content: dict) -> dict:
    """COCO annotations of what is seen of each object, as run-length codes."""
    from pycocotools import mask

    seen = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        numbers = numbers_of([a["bbox"] for a in own])
        for number, annotation in enumerate(own):
            plane = np.asfortranarray((numbers == number + 1).astype(np.uint8))
            if plane.any():
                code = mask.encode(plane)
                seen.append({**annotation, "segmentation": code, "area": int(plane.sum())})
    return {**content, "annotations": seen}


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
