"""A COCO set with one defect of every kind, and its clean twin."""

import hashlib
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.findings import GUESSED_KINDS, KINDS, MASK_KINDS

WIDTH, HEIGHT = 96, 64
NUM_PLAIN, NUM_VAL = 8, 6
PNG_KINDS = {
    *("absurd size", "16-bit image", "palette image", "transparent image"),
    "size differs from header",
}
OF_YOLO = {"image without label file"}
NOT_COCO = {"box inverted", *OF_YOLO}
"""Kinds that COCO files cannot have; `write_planted_rows` has those of corners"""
REFUSED = {name for name, kind in KINDS.items() if kind.remedy == "refused"} - set(GUESSED_KINDS)
FIRST_PLANTED_ID = 9000
"""Planted annotations and images are numbered from here"""


def write_clean(root: Path) -> Path:
    """train/ and val/ with annotations/, without any defect; one image for each kind."""
    _write_split(root, "train", _train_names())
    held_out = [f"other-{i}.jpg" for i in range(NUM_VAL)]
    _write_split(root, "val", [_file_name("training image in validation"), *held_out])
    return root


def write_planted(root: Path, refused: bool = True) -> dict[str, str]:
    """`write_clean` with one defect of every kind that COCO files can have.

    Args:
        refused: also those that training refuses.

    Returns:
        What `where` of the finding contains, by kind; there is one finding of each kind.
    """
    write_clean(root)
    where = _plant_in_images(root)
    where |= _plant_in_annotations(root, refused)
    return where


def write_planted_rows(root: Path) -> dict[str, str]:
    """An image folder with corners for boxes (data.box_format pascal_voc) and broken rows.

    Returns:
        As `write_planted`.
    """
    write_clean(root)
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"{split}.json").read_text())
        lines = []
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            x, y, w, h = annotation["bbox"]
            corners = [x, y, x + w, y + h]
            if image["file_name"] == "plain-0.jpg":
                corners = [x + w, y, x, y + h]
            objects = {"bbox": [corners], "category": [annotation["category_id"] - 1]}
            row = {"file_name": image["file_name"], "image_id": image["id"], "objects": objects}
            lines.append(json.dumps(row))
        if split == "train":
            lines.append('{"file_name": "plain-1.jpg", "objects": ')
            lines.append('{"file_name": "../secret.jpg", "image_id": 77}')
            lines.append('{"file_name": "absent.jpg", "image_id": 78}')
            num = len(lines)
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (root / "categories.json").write_text(json.dumps(["plate", "car"]))
    shutil.rmtree(root / "annotations")
    return {
        "box inverted": f"metadata.jsonl, line {_train_names().index('plain-0.jpg') + 1}",
        "broken row": f"metadata.jsonl, line {num - 2}",
        "path leaves the folder": f"metadata.jsonl, line {num - 1}",
        "missing image": f"metadata.jsonl, line {num}",
    }


def _train_names() -> list[str]:
    skipped = NOT_COCO | {"image without annotation", "training image in validation"}
    return [
        *(
            _file_name(kind)
            for kind in KINDS
            if kind not in skipped | MASK_KINDS | set(GUESSED_KINDS)
        ),
        *(f"plain-{i}.jpg" for i in range(NUM_PLAIN)),
    ]


def _file_name(kind: str) -> str:
    return f"{kind.replace(' ', '-')}.{'png' if kind in PNG_KINDS else 'jpg'}"


def _box_of(name: str) -> list[int]:
    draw = np.random.default_rng(_number(name))
    w, h = int(draw.integers(16, 40)), int(draw.integers(12, 30))
    return [int(draw.integers(0, WIDTH - w)), int(draw.integers(0, HEIGHT - h)), w, h]


def _pixels(name: str) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: noise that no other image has, bright in the box."""
    draw = np.random.default_rng(_number(name))
    pixels = draw.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    x, y, w, h = _box_of(name)
    pixels[y : y + h, x : x + w] += 150
    return pixels


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _write_split(root: Path, split: str, names: list[str]) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, name in enumerate(names, 1):
        Image.fromarray(_pixels(name)).save(root / split / name, quality=90)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        x, y, w, h = _box_of(name)
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + number % 2,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "plate"}, {"id": 2, "name": "car"}],
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _plant_in_images(root: Path) -> dict[str, str]:
    train = root / "train"
    where = {}

    def file(kind: str) -> Path:
        where[kind] = f"train/{_file_name(kind)}"
        return train / _file_name(kind)

    def image(kind: str) -> Image.Image:
        return Image.fromarray(_pixels(_file_name(kind)))

    file("missing image").unlink()
    file("empty file").write_bytes(b"")
    file("unreadable image").write_text("404: Not Found")
    content = file("truncated image").read_bytes()
    file("truncated image").write_bytes(content[: len(content) * 2 // 3])
    file("absurd size").write_bytes(_png_that_claims(100_000, 100_000))
    content = file("size differs from header").read_bytes()
    file("size differs from header").write_bytes(_turned_behind_its_pixels(content))
    image("wrong extension").save(file("wrong extension"), "PNG")
    deep = np.asarray(image("16-bit image").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(file("16-bit image"))
    image("CMYK image").convert("CMYK").save(file("CMYK image"))
    image("palette image").quantize(64).save(file("palette image"))
    see_through = image("transparent image")
    see_through.putalpha(128)
    see_through.save(file("transparent image"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    rotated = image("EXIF-rotated image").rotate(90, expand=True)
    rotated.save(file("EXIF-rotated image"), exif=exif, quality=90)
    shutil.copy(train / "plain-0.jpg", file("duplicate image"))
    where["duplicate image"] = "train/plain-0.jpg"  # the second of the two in the file
    leaked = "val/training-image-in-validation.jpg"
    shutil.copy(train / "plain-1.jpg", root / leaked)
    Image.fromarray(_pixels("unlisted")).save(file("image without annotation"))
    return {**where, "training image in validation": leaked}


def _chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def _turned_behind_its_pixels(png: bytes) -> bytes:
    """A PNG whose orientation stands in XMP behind the pixels, where no header is looked for."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    keyword = b"XML:com.adobe.xmp"
    end = png.rindex(b"IEND") - 4
    return png[:end] + _chunk(b"iTXt", keyword + bytes(5) + xmp) + png[end:]


def _png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _plant_in_annotations(root: Path, refused: bool) -> dict[str, str]:
    file = root / "annotations" / "train.json"
    content = json.loads(file.read_text())
    by_name = {image["file_name"]: image for image in content["images"]}
    where: dict[str, str] = {}

    def plant(kind: str, bbox: list[float], **keys: Any) -> None:
        number = FIRST_PLANTED_ID + len(where)
        image = by_name[_file_name(kind)]
        row = {"id": number, "image_id": image["id"], "category_id": 1, "bbox": bbox}
        content["annotations"].append({**row, **keys})
        place = "annotations/train.json" if kind in TOLD_BY_FILE else f"train/{_file_name(kind)}"
        where[kind] = f"{place}, annotation {keys.get('id', number)}"

    plant("box not a number", [float("nan"), 5, 10, 10])
    plant("box without area", [5, 5, 0, 10])
    plant("box with a negative side", [50, 40, -20, 10])
    plant("box outside the image", [WIDTH + 5, 5, 10, 10])
    plant("box partly outside", [WIDTH - 10, HEIGHT - 10, 30, 30])
    twin = content["annotations"][by_name[_file_name("duplicate box")]["id"] - 1]
    plant("duplicate box", twin["bbox"], category_id=twin["category_id"])
    again = content["annotations"][by_name[_file_name("duplicate annotation id")]["id"] - 1]
    plant("duplicate annotation id", [2, 2, 9, 9], id=again["id"])
    wrong = by_name[_file_name("size differs from annotation")]
    wrong |= {"width": 2 * WIDTH, "height": 2 * HEIGHT}
    where["size differs from annotation"] = f"train/{wrong['file_name']}"
    if refused:
        plant("broken row", [1, 2, 3])
        plant("annotation without image", [1, 2, 3, 4], image_id=99_999)
        plant("unknown category", [1, 2, 30, 4], category_id=42)
        content["images"].append(dict(by_name[_file_name("duplicate image id")]))
        place = len(content["images"]) - 1
        where["duplicate image id"] = f"annotations/train.json, image at place {place}"
        elsewhere = {"id": 99_998, "file_name": "../../secret.jpg", "width": 9, "height": 9}
        content["images"].append(elsewhere)
        where["path leaves the folder"] = "annotations/train.json, image 99998"
    file.write_text(json.dumps(content))
    return where


TOLD_BY_FILE = {"annotation without image", "duplicate annotation id"}
"""Kinds of annotations whose image is not known, or does not matter"""
