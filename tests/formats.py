"""The images of `builders.write_coco`, written in every format that can be read."""

import json
import shutil
from pathlib import Path

import datasets

from builders import BOXES, SIZES, cut_box, write_coco, write_imagefolder, write_images
from settings.keys import DataConfig

NAMES = ("car", "plate")


def categories_of(index):
    """Class index of each box of image `index`."""
    return [number % 2 for number in range(len(BOXES[index % len(BOXES)]))]


def write_coco_set(root, num, split, seed):
    write_coco(root, num, split, ids=(1, 3), seed=seed)
    file = root / "annotations" / f"{split}.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "car"}, {"id": 3, "name": "plate"}]
    file.write_text(json.dumps(content))


def write_imagefolder_set(root, num, split, seed):
    write_imagefolder(root, num, split, seed)
    file = root / split / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["objects"]["category"] = categories_of(index)
        boxes = BOXES[index % len(BOXES)]
        row["objects"]["segmentation"] = [[cut_box(*box)] for box in boxes]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "categories.json").write_text(json.dumps(NAMES))


def write_hub_set(root, num, split, seed):
    write_imagefolder_set(root / "files", num, split, seed)
    folder = root / "files" / split
    write_parquet(root / "hub", folder, split)
    shutil.rmtree(root / "files")


def write_parquet(root: Path, folder: Path, split: str, category: str = "category") -> None:
    """An image folder's split as a split of a local dataset in Hub format."""
    rows = []
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        file = folder / row.pop("file_name")
        row["objects"][category] = row["objects"].pop("category")
        cell = {"bytes": file.read_bytes(), "path": None} if file.is_file() else None
        rows.append({"image": cell, **row})
    polygons = datasets.List(datasets.List(datasets.List(datasets.Value("float32"))))
    with_masks = {"segmentation": polygons} if "segmentation" in rows[0]["objects"] else {}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("int64"),
            "width": datasets.Value("int64"),
            "height": datasets.Value("int64"),
            "objects": {
                "id": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "area": datasets.List(datasets.Value("float32")),
                category: datasets.List(datasets.ClassLabel(names=list(NAMES))),
                **with_masks,
            },
        }
    )
    name = "validation" if split == "val" else split
    target = root / "data" / f"{name}-00000-of-00001.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(target))


def voc_xml(name, size, objects):
    """A Pascal VOC annotation; objects: (class name, xywh box, further elements)."""
    items = "".join(
        f"<object><name>{label}</name>{more}<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for label, (x, y, w, h), more in objects
    )
    width, height = size
    return (
        f"<annotation><filename>{name}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{items}</annotation>"
    )


def _objects(index):
    boxes = BOXES[index % len(BOXES)]
    return [(NAMES[c], box, "") for c, box in zip(categories_of(index), boxes, strict=True)]


def write_voc_folders(root, num, split, seed):
    """One folder a split, XML beside the images."""
    for index, name in enumerate(write_images(root / split, num, seed)):
        xml = voc_xml(name, SIZES[index % len(SIZES)], _objects(index))
        (root / split / name).with_suffix(".xml").write_text(xml)


def write_voc(root, num, split, seed):
    """The original layout."""
    images = write_images(root / "temporary", num, seed)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    stems = []
    for index, name in enumerate(images):
        stem = f"{split}_{index:03d}"
        stems.append(stem)
        (root / "temporary" / name).rename(root / "JPEGImages" / f"{stem}.jpg")
        xml = voc_xml(f"{stem}.jpg", SIZES[index % len(SIZES)], _objects(index))
        (root / "Annotations" / f"{stem}.xml").write_text(xml)
    (root / "temporary").rmdir()
    (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def write_yolo(root, num, split, seed):
    images = write_images(root / "images" / split, num, seed)
    labels = root / "labels" / split
    labels.mkdir(parents=True)
    for index, name in enumerate(images):
        width, height = SIZES[index % len(SIZES)]
        lines = [
            f"{c} {(x + w / 2) / width!r} {(y + h / 2) / height!r} {w / width!r} {h / height!r}"
            for c, (x, y, w, h) in zip(categories_of(index), BOXES[index % len(BOXES)], strict=True)
        ]
        text = "".join(f"{line}\n" for line in lines)
        (labels / name).with_suffix(".txt").write_text(text)
    content = "path: .\ntrain: images/train\nval: images/val\nnames: {0: car, 1: plate}\n"
    (root / "data.yaml").write_text(content)


def write_yolo_polygons(root, num, split, seed):
    """Lines with polygons in place of boxes."""
    write_yolo(root, num, split, seed)
    for index, file in enumerate(sorted((root / "images" / split).glob("*.jpg"))):
        width, height = SIZES[index % len(SIZES)]
        lines = []
        for c, box in zip(categories_of(index), BOXES[index % len(BOXES)], strict=True):
            points = cut_box(*box)
            relative = [v / (height if n % 2 else width) for n, v in enumerate(points)]
            lines.append(" ".join(map(repr, [c, *relative])) + "\n")
        if lines:
            (root / "labels" / split / f"{file.stem}.txt").write_text("".join(lines))


WRITERS = {
    "coco": (write_coco_set, "coco", ""),
    "imagefolder": (write_imagefolder_set, "imagefolder", ""),
    "hub": (write_hub_set, "hub", "hub"),
    "hub streamed": (write_hub_set, "hub", "hub"),
    "voc": (write_voc, "voc", ""),
    "voc folders": (write_voc_folders, "voc", ""),
    "yolo": (write_yolo, "yolo", ""),
    "yolo polygons": (write_yolo_polygons, "yolo", ""),
}
"""(writer, data.source, folder below the root) by format"""


def write_format(root: Path, name: str, **changes: object) -> DataConfig:
    """Write training and validation images in a format; the configuration that reads them."""
    writer, source, below = WRITERS[name]
    root.mkdir(parents=True, exist_ok=True)
    writer(root, 8, "train", 0)
    writer(root, 4, "val", 1)
    if source == "hub":
        changes = {"val_split": "validation", "streaming": name == "hub streamed", **changes}
    return DataConfig(
        **{"source": source, "path": str(root / below), "val_split": "val", **changes}
    )
