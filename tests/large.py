"""A dataset whose images take long enough to decode for a process to be killed meanwhile."""

import json
import shutil

import numpy as np
from PIL import Image

from builders import write_coco


def write_large(root, num):
    """Images that take a while to decode; each is the same."""
    write_coco(root, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train/000.jpg")
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    (image, *_), annotations = content["images"], []
    images = []
    for number in range(num):
        name = f"{number:03d}.jpg"
        if number:
            shutil.copy(root / "train/000.jpg", root / "train" / name)
        images.append({**image, "id": number, "file_name": name, "width": 1600, "height": 1200})
        annotations.append({**content["annotations"][0], "id": number + 1, "image_id": number})
    file.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    write_coco(root, 5, "val", seed=1)
