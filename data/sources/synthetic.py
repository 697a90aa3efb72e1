"""Reader: synthetic street scenes, written once to disk as JPEG and COCO files.

Decoding, annotation files and everything after them are thus the same as for real photos.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.coco_format import coco_content
from data.masks import Planes, encode_all, mask_column
from data.objects import Objects
from data.sources.coco import read_split as read_split  # the written files are a COCO dataset
from data.taxonomy import Taxonomy
from disk import cache_root, whole_folder
from settings.keys import MAX_SYNTHETIC_SEED, DataConfig
from street.paint import PART
from street.scenes import Scene, render_scene

FORMAT = 1
"""Raise it when scenes change, so that old caches are not read"""
JPEG_QUALITY = 92
TAXONOMY = Taxonomy(("license_plate",), (1,))
MASK_TAXONOMY = Taxonomy(("license_plate", "car"), (1, 2))
MIN_MASK_PX = 64
"""What shows less of itself is not labelled"""


def ensure_written(cfg: DataConfig, seed: int, masks: bool = False) -> DataConfig:
    """Write the scenes unless they are there, and return `cfg` pointing at the COCO files.

    Args:
        masks: plates and cars with their masks, instead of plates alone.
    """
    folder = cache_folder(cfg, seed, masks)
    if not folder.is_dir():
        with whole_folder(folder, shared=True) as temporary:
            write_scenes(temporary, "train", cfg.synthetic_train, seed, masks)
            write_scenes(temporary, "val", cfg.synthetic_val, seed + MAX_SYNTHETIC_SEED, masks)
    return dataclasses.replace(cfg, path=str(folder), val_split=None if cfg.val_on_train else "val")


def cache_folder(cfg: DataConfig, seed: int, masks: bool = False) -> Path:
    """Folder of the scenes of this seed and these numbers."""
    root = Path(cfg.path).expanduser() if cfg.path else cache_root()
    kind = "masks-" if masks else ""
    return root / f"scenes-{kind}v{FORMAT}-seed{seed}-{cfg.synthetic_train}-{cfg.synthetic_val}"


def write_scenes(root: Path, split: str, num_scenes: int, seed: int, masks: bool = False) -> None:
    """Write `num_scenes` scenes as root/split/*.jpg with root/annotations/split.json."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    tables: list[Objects] = []
    for index in range(num_scenes):
        scene = render_scene(seed, index)
        height, width = scene.image.shape[:2]
        name = f"{index:06d}.jpg"
        Image.fromarray(scene.image).save(root / split / name, quality=JPEG_QUALITY)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        tables.append(_things(scene) if masks else _plates(scene.plate_boxes))
    taxonomy = MASK_TAXONOMY if masks else TAXONOMY
    content = coco_content(images, Objects.of_images(tables), taxonomy)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _plates(boxes: np.ndarray) -> Objects:
    rounded = [[round(float(value), 2) for value in box] for box in boxes]
    areas = [round(float(width * height), 2) for _, _, width, height in boxes]
    return Objects(
        boxes=np.array(rounded).reshape(-1, 4),
        classes=np.zeros(len(boxes), np.int64),
        areas=np.array(areas),
        iscrowd=np.zeros(len(boxes), bool),
    )


def _things(scene: Scene) -> Objects:
    """What can be seen of every car, and of its plate, which is a part of it."""
    planes: list[np.ndarray] = []
    classes: list[int] = []
    for number, kind in enumerate(scene.kinds, 1):
        if kind != "car":
            continue
        own = scene.ids == number
        for plane, name in ((own, kind), (own & (scene.parts == PART["plate"]), "license_plate")):
            if plane.sum() >= MIN_MASK_PX:
                planes.append(plane)
                classes.append(MASK_TAXONOMY.label2id[name])
    if not planes:
        return Objects.none()
    ids = np.stack([plane * np.uint8(1) for plane in planes])
    parts = [Planes(plane[None]).boxes(1) for plane in ids]
    return Objects(
        boxes=np.concatenate([boxes for boxes, _ in parts]),
        classes=np.array(classes),
        areas=np.concatenate([areas for _, areas in parts]).astype(np.float64),
        iscrowd=np.zeros(len(planes), bool),
        masks=mask_column(encode_all(ids)),
    )
