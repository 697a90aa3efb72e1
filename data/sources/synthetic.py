"""Reader: synthetic street scenes, written once to disk as JPEG and COCO files.

Decoding, annotation files and everything after them are thus the same as for real photos.
"""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.coco_format import coco_content
from data.images.headers import EXTENSIONS
from data.masks import Planes, encode_all, mask_column
from data.objects import Objects
from data.sources.coco import read_split as read_split  # the written files are a COCO dataset
from data.taxonomy import Taxonomy
from disk import alone, cache_root, whole_folder
from errors import UserError
from settings.keys import MAX_SYNTHETIC_SEED, DataConfig
from settings.tasks import Labels
from street.paint import PART
from street.scenes import Scene, render_scene

FORMAT = 1
"""Raise it when scenes change, so that old caches are not read"""
JPEG_QUALITY = 92
TAXONOMY = Taxonomy(("license_plate",), (1,))
MASK_TAXONOMY = Taxonomy(("license_plate", "car"), (1, 2))
REGION_TAXONOMY = Taxonomy(("license_plate", "car", "sign", "building"), (1, 2, 3, 4))
TAXONOMIES = {"boxes": TAXONOMY, "masks": MASK_TAXONOMY, "regions": REGION_TAXONOMY}
TAXONOMIES["segments"] = REGION_TAXONOMY
MIN_MASK_PX = 64
"""What shows less of itself is not labelled"""


def ensure_written(cfg: DataConfig, seed: int, labels: Labels = "boxes") -> DataConfig:
    """Write the scenes unless they are there, and return `cfg` pointing at the COCO files.

    Args:
        labels: boxes of plates, masks of plates and cars, or these of signs and buildings as well.

    Raises:
        UserError: if `cfg.path` is a folder of somebody's images, which these scenes are not.
    """
    folder = cache_folder(cfg, seed, labels)
    if cfg.path:
        _refuse_others(folder.parent)
    with alone(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            with whole_folder(folder, shared=True) as temporary:
                write_scenes(temporary, "train", cfg.synthetic_train, seed, labels)
                write_scenes(temporary, "val", cfg.synthetic_val, seed + MAX_SYNTHETIC_SEED, labels)
    return dataclasses.replace(cfg, path=str(folder), val_split=None if cfg.val_on_train else "val")


def _refuse_others(root: Path) -> None:
    """Raise a UserError if a folder holds images that are no scenes of ours, down to images/train/a.jpg."""
    for pattern in ("*", "*/*", "*/*/*"):
        for file in root.glob(pattern):
            own = file.relative_to(root).parts[0].startswith("scenes-")
            if file.suffix.lower() in EXTENSIONS and not own:
                raise UserError(
                    f"data.path {root}: has images ({file.relative_to(root)}), which data.source synthetic does not "
                    f"read: `python -m tools.start {shlex.quote(str(root))}` writes a configuration for them; or say "
                    "what they are, for instance --data.source coco, or leave data.path out"
                )


def cache_folder(cfg: DataConfig, seed: int, labels: Labels = "boxes") -> Path:
    """Folder of the scenes of this seed and these numbers."""
    root = Path(cfg.path).expanduser() if cfg.path else cache_root()
    kind = "" if labels == "boxes" else f"{labels}-"
    return root / f"scenes-{kind}v{FORMAT}-seed{seed}-{cfg.synthetic_train}-{cfg.synthetic_val}"


def write_scenes(
    root: Path, split: str, num_scenes: int, seed: int, labels: Labels = "boxes"
) -> None:
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
        boxes_alone = labels == "boxes"
        own = _plates(scene.plate_boxes) if boxes_alone else _things(scene, TAXONOMIES[labels])
        tables.append(own)
    taxonomy = TAXONOMIES[labels]
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


def _things(scene: Scene, taxonomy: Taxonomy) -> Objects:
    """What can be seen of every thing of these classes, and of a car's plate, which is a part of it."""
    planes: list[np.ndarray] = []
    classes: list[int] = []
    for number, kind in enumerate(scene.kinds, 1):
        if kind not in taxonomy.names:
            continue
        own = scene.ids == number
        parts = {kind: own}
        if kind == "car":
            parts["license_plate"] = own & (scene.parts == PART["plate"])
        for name, plane in parts.items():
            if plane.sum() >= MIN_MASK_PX:
                planes.append(plane)
                classes.append(taxonomy.label2id[name])
    if not planes:
        return Objects.none()
    ids = np.stack([plane * np.uint8(1) for plane in planes])
    around = [Planes(plane[None]).boxes(1) for plane in ids]
    return Objects(
        boxes=np.concatenate([boxes for boxes, _ in around]),
        classes=np.array(classes),
        areas=np.concatenate([areas for _, areas in around]).astype(np.float64),
        iscrowd=np.zeros(len(planes), bool),
        masks=mask_column(encode_all(ids)),
    )
