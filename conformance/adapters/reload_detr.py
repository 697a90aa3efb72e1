"""Boxes of an exported detector as transformers' documentation has them: MODEL DATASET BOXES."""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection


def main(model_folder: str, dataset: str, boxes: str) -> None:
    processor = AutoImageProcessor.from_pretrained(model_folder)
    model = AutoModelForObjectDetection.from_pretrained(model_folder).eval()
    content = json.loads((Path(dataset) / "annotations/val.json").read_text())
    found = []
    for image in content["images"]:
        picture = Image.open(Path(dataset) / "val" / image["file_name"])
        with torch.no_grad():
            outputs = model(**processor(images=picture, return_tensors="pt"))
        sizes = [(picture.height, picture.width)]
        result = processor.post_process_object_detection(outputs, 0.0, target_sizes=sizes)[0]
        rows = (result[key].tolist() for key in ("scores", "labels", "boxes"))
        for score, label, (left, top, right, bottom) in zip(*rows, strict=True):
            box = [left, top, right - left, bottom - top]
            row = {"image_id": image["id"], "category_id": label + 1, "bbox": box, "score": score}
            found.append(row)
    Path(boxes).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
