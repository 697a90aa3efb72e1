"""Reader: synthetic street scenes, written once to disk as JPEG and COCO files.

Decoding, annotation files and everything after them are thus the same as for real photos.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from data.sources.coco import read_split as read_split  # the written files are a COCO dataset
from settings.keys import MAX_SYNTHETIC_SEED, DataConfig
from street.scenes import render_scene

FORMAT = 1
"""Raise it when scenes change, so that old caches are not read"""
JPEG_QUALITY = 92


def ensure_written(cfg: DataConfig, seed: int) -> DataConfig:
    """Write the scenes unless they are there, and return `cfg` pointing at the COCO files."""
    folder = cache_folder(cfg, seed)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
        write_scenes(temporary, "train", cfg.synthetic_train, seed)
        write_scenes(temporary, "val", cfg.synthetic_val, seed + MAX_SYNTHETIC_SEED)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return dataclasses.replace(cfg, path=str(folder), val_split=None if cfg.val_on_train else "val")


def cache_folder(cfg: DataConfig, seed: int) -> Path:
    """Folder of the scenes of this seed and these numbers."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "permafrost"
    root = Path(cfg.path).expanduser() if cfg.path else default
    return root / f"scenes-v{FORMAT}-seed{seed}-{cfg.synthetic_train}-{cfg.synthetic_val}"


def write_scenes(root: Path, split: str, num_scenes: int, seed: int) -> None:
    """Write `num_scenes` scenes as root/split/*.jpg with root/annotations/split.json."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_scenes):
        scene = render_scene(seed, index)
        height, width = scene.image.shape[:2]
        name = f"{index:06d}.jpg"
        Image.fromarray(scene.image).save(root / split / name, quality=JPEG_QUALITY)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for box in scene.plate_boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "bbox": [round(float(v), 2) for v in box],
                    "area": round(float(box[2] * box[3]), 2),
                    "iscrowd": 0,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "license_plate"}],
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
