"""RF-DETR by its documented calls, with arguments from the command line: `MODEL TRAINING` (JSON), or
`--write FILE`, or `--reload CHECKPOINT DATASET BOXES`."""

import json
import sys
from pathlib import Path

GEOMETRY = {
    "resolution": 64,
    "positional_encoding_size": 4,
    "num_queries": 10,
    "num_select": 10,
    "num_classes": 2,
    "device": "cpu",
}


def write(file: str) -> None:
    """A checkpoint with random weights, as its own training writes them."""
    import torch
    from rfdetr import RFDETRNano

    torch.manual_seed(0)
    model = RFDETRNano(pretrain_weights=None, **GEOMETRY)
    for name, values in model.model.model.named_parameters():
        if "enc_out_bbox_embed" in name and name.endswith("layers.2.bias"):
            values.data = torch.tensor(
                [2.5, 2.5, 2.3, 2.3]
            )  # the square about the centre: an AP above 0
        elif name == "class_embed.bias":
            values.data[0] += 2
    content = {"num_queries": 10, "group_detr": 13, "class_names": ["square", "bar"]}
    torch.save({"model": model.model.model.state_dict(), "args": content}, file)


def reload(checkpoint: str, dataset: str, boxes: str) -> None:
    from PIL import Image
    from rfdetr import RFDETRNano

    model = RFDETRNano(pretrain_weights=checkpoint, **GEOMETRY)
    content = json.loads((Path(dataset) / "annotations/val.json").read_text())
    found = []
    for image in content["images"]:
        picture = Image.open(Path(dataset) / "val" / image["file_name"]).convert("RGB")
        result = model.predict(picture, threshold=0.0)
        rows = zip(result.xyxy.tolist(), result.confidence.tolist(), result.class_id, strict=True)
        for (left, top, right, bottom), score, kind in rows:
            box = [left, top, right - left, bottom - top]
            row = {"image_id": image["id"], "category_id": int(kind) + 1, "bbox": box}
            found.append({**row, "score": score})
    Path(boxes).write_text(json.dumps(found))


def train(model: str, training: str) -> None:
    from rfdetr import RFDETRNano

    RFDETRNano(**GEOMETRY, **json.loads(model)).train(**json.loads(training))


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(*sys.argv[2:])
    elif sys.argv[1] == "--reload":
        reload(*sys.argv[2:])
    else:
        train(*sys.argv[1:])
