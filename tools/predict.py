"""Find objects in images, draw them and write them as JSON.

`python -m tools.predict --model runs/demo/export photo.jpg folder/ --out predictions`
"""

import argparse
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, ending_with_one_line, printable
from settings.tasks import EVERY_PIXEL, Task


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.predict", description=__doc__)
    parser.add_argument("--model", required=True, help="exported folder or Hub id")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for drawings and JSON")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (default: 0.5)")
    parser.add_argument(
        "--task",
        choices=typing.get_args(Task),
        help="of a model for several tasks (default: what it was trained for here)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: must lie between 0 and 1")
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import json
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.batch import Sample
from data.feed.collate import collate
from data.feed.transforms import resize
from data.images.decode import decode
from data.objects import Objects
from data.regions import label_map
from devices import compute_in_fp32
from disk import write_whole
from export.detector import LoadedDetector, load_detector
from report.drawing import draw_objects, legend_of, with_legend
from tools.prediction_files import (
    IMAGE_SUFFIXES,
    LABEL_MAPS,
    NAMES,
    RESULTS,
    drawing_names,
    image_files,
    refuse_lost_names,
)


def main(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Predict what a command line asks for; see `predict`."""
    return predict(arguments(argv))


def predict(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict for all images; what predictions.json holds.

    Raises:
        UserError: for a missing image or folder; an image that cannot be read is named and skipped.
    """
    files = list(image_files(args.images))
    if not files:
        raise UserError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {args.images}")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file")
    drawings = drawing_names(files, args.out)
    maps = drawing_names(files, args.out, LABEL_MAPS)
    detector = load_detector(args.model, args.task)
    regions = detector.labels == "regions"
    compute_in_fp32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.trainable.to(device)
    if regions:
        refuse_lost_names(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    if regions:
        (args.out / LABEL_MAPS).mkdir(exist_ok=True)
    results = []
    for file, drawing, class_map in zip(files, drawings, maps, strict=True):
        try:
            image = decode(file, str(file))
        except UserError as error:
            print(printable(f"skipped: {error}"), file=sys.stderr)
            continue
        found = detect(detector, image, args.threshold, device)
        texts = texts_of(found, detector)
        picture(image, found, detector).save(drawing)
        result = {"image": str(file), "drawing": str(drawing), "objects": entries(found, detector)}
        if regions:
            result["label_map"] = str(class_map)
            save_label_map(found, (image.shape[0], image.shape[1]), class_map)
        results.append(result)
        print(printable(f"{file}: {', '.join(texts) or 'nothing found'}"))
    if not results:
        raise UserError("none of the images could be read")
    write_whole(args.out / RESULTS, json.dumps(results, indent=1) + "\n")
    what, maps_too = {"masks": "boxes and masks"}.get(detector.labels, detector.labels), ""
    if regions:
        write_whole(args.out / NAMES, json.dumps(dict(enumerate(detector.names)), indent=1) + "\n")
        maps_too = f"; label maps in {args.out / LABEL_MAPS}, names of their values in {NAMES}"
    print(f"{len(results)} image(s) drawn; {what} in {args.out / RESULTS}{maps_too}")
    return results


def texts_of(found: Objects, detector: LoadedDetector) -> list[str]:
    """Class and score of each object; the score of a region says nothing."""
    names = [detector.names[c] for c in found.classes]
    if detector.labels == "regions":
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]


def picture(image: np.ndarray, found: Objects, detector: LoadedDetector) -> Image.Image:
    """What is found on uint8 [H, W, 3], with a tag at each object, or a legend where all pixels have a class."""
    if detector.labels not in EVERY_PIXEL:
        return draw_objects(image, found, texts_of(found, detector))
    return with_legend(draw_objects(image, found), legend_of(detector.names, [found]))


def entries(found: Objects, detector: LoadedDetector) -> list[dict[str, Any]]:
    """The objects as predictions.json has them."""
    rows: list[dict[str, Any]] = [
        {
            "label": detector.names[c],
            "score": round(score, 4),
            "box_xywh": [round(v, 2) for v in box],
        }
        for c, score, box in zip(
            found.classes, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
    for row, mask in zip(rows, [] if found.masks is None else found.masks, strict=False):
        row["mask_rle"] = mask.coco()
    return rows


def save_label_map(found: Objects, size: tuple[int, int], file: Path) -> None:
    """The class index of every pixel as a PNG, of 16 bits if one is greater than 255."""
    labels = label_map(found, size) - 1  # every pixel has a class
    Image.fromarray(labels.astype(np.uint8) if labels.max() < 256 else labels).save(file)


def detect(
    detector: LoadedDetector, image: np.ndarray, threshold: float, device: torch.device
) -> Objects:
    """Objects in uint8 [H, W, 3] by falling score; boxes xywh in px of the image, masks on it."""
    height, width = image.shape[:2]
    small = resize(image, detector.rule.resized(height, width))
    sample = Sample(small, Objects.none(), 0, 0, (height, width), detector.rule.full)
    return detector.trainable.predict(collate([sample]).to(device), threshold=threshold)


if __name__ == "__main__":
    with ending_with_one_line():
        predict(GIVEN)
