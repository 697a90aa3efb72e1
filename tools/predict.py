"""Find objects in images, draw them and write them as JSON.

`python -m tools.predict --model runs/demo/export photo.jpg folder/ --out predictions`
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.feed.collate import Sample, collate
from data.feed.transforms import full_canvas, resize, resized_size
from data.images.decode import decode
from errors import UserError, fail
from export.detector import LoadedDetector, load_detector
from report.drawing import draw_boxes

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def main(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Predict for all images; what predictions.json holds.

    Raises:
        UserError: for a missing image or folder; an image that cannot be read is named and skipped.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.predict", description=__doc__)
    parser.add_argument("--model", required=True, help="exported folder or Hub id")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for drawings and JSON")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (default: 0.5)")
    args = parser.parse_args(argv)
    files = list(image_files(args.images))
    if not files:
        raise UserError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {args.images}")
    detector = load_detector(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.model.to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for file, drawing in zip(files, drawing_names(files, args.out), strict=True):
        try:
            image = decode(file, str(file))
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        found = detect(detector, image, args.threshold, device)
        texts = [f"{box['label']} {box['score']:.2f}" for box in found]
        boxes = np.array([box["box_xywh"] for box in found]).reshape(-1, 4)
        draw_boxes(image, boxes, texts, [detector.names.index(b["label"]) for b in found]).save(
            drawing
        )
        results.append({"image": str(file), "drawing": str(drawing), "objects": found})
        print(f"{file}: {', '.join(texts) or 'nothing found'}")
    (args.out / "predictions.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} image(s) drawn; boxes in {args.out / 'predictions.json'}")
    return results


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among `paths` and the images in the folders among them."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: no such file or folder")


def drawing_names(files: Sequence[Path], out: Path) -> list[Path]:
    """One PNG per image; images of equal names do not overwrite each other."""
    names: list[str] = []
    for file in files:
        name, number = file.stem, 2
        while name in names:
            name, number = f"{file.stem}-{number}", number + 1
        names.append(name)
    return [out / f"{name}.png" for name in names]


@torch.no_grad()
def detect(
    detector: LoadedDetector, image: np.ndarray, threshold: float, device: torch.device
) -> list[dict[str, Any]]:
    """Objects in uint8 [H, W, 3] by falling score: {label, score, box_xywh in px of the image}."""
    height, width = image.shape[:2]
    small = resize(image, resized_size(height, width, detector.image_size))
    canvas = full_canvas(detector.image_size)
    nothing = np.zeros((0, 4)), np.zeros(0, np.int64)
    batch = collate([Sample(small, *nothing, 0, 0, (height, width), canvas)]).to(device)
    outputs = detector.model(
        pixel_values=detector.normalization(batch.pixel_values, batch.pixel_mask),
        pixel_mask=batch.pixel_mask,
    )
    found = detector.processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=torch.tensor([[height, width]], device=device)
    )[0]
    objects = []
    for place in found["scores"].argsort(descending=True, stable=True).tolist():
        x1, y1, x2, y2 = (round(v, 2) for v in found["boxes"][place].tolist())
        objects.append(
            {
                "label": detector.names[int(found["labels"][place])],
                "score": round(float(found["scores"][place]), 4),
                "box_xywh": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            }
        )
    return objects


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(error)
