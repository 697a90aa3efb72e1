"""Masks of an exported segmenter as transformers' documentation has them: MODEL DATASET MASKS."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation


def main(model_folder: str, dataset: str, masks: str) -> None:
    processor = AutoImageProcessor.from_pretrained(model_folder)
    model = AutoModelForUniversalSegmentation.from_pretrained(model_folder).eval()
    content = json.loads((Path(dataset) / "annotations/val.json").read_text())
    found = []
    for image in content["images"]:
        picture = Image.open(Path(dataset) / "val" / image["file_name"])
        with torch.no_grad():
            outputs = model(**processor(images=picture, return_tensors="pt"))
        result = processor.post_process_instance_segmentation(
            outputs,
            threshold=0.0,
            target_sizes=[(picture.height, picture.width)],
            return_binary_maps=True,
        )[0]
        for info, plane in zip(result["segments_info"], result["segmentation"], strict=False):
            code = rle.encode(np.asfortranarray(plane.numpy().astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            row = {"image_id": image["id"], "category_id": info["label_id"] + 1}
            found.append({**row, "segmentation": code, "score": info["score"]})
    Path(masks).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
