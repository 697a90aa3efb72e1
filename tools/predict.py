"""Find objects in images, draw them and write them as JSON.

`python -m tools.predict --model runs/demo/export photo.jpg folder/ --out predictions`
"""

import argparse
import json
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.batch import Sample
from data.feed.collate import collate
from data.feed.transforms import resize
from data.images.decode import decode
from data.images.headers import EXTENSIONS
from data.objects import Objects
from data.regions import label_map
from disk import write_whole
from errors import UserError, ending_with_one_line, printable
from export.detector import LoadedDetector, load_detector
from report.drawing import draw_objects
from settings.keys import Task

RESULTS = "predictions.json"
IMAGE_SUFFIXES = set(EXTENSIONS)


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
    parser.add_argument(
        "--task",
        choices=typing.get_args(Task),
        help="of a model for several tasks (default: what it was trained for here)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: must lie between 0 and 1")
    files = list(image_files(args.images))
    if not files:
        raise UserError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {args.images}")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file")
    drawings = drawing_names(files, args.out)
    maps = drawing_names(files, args.out, "-classes", drawings)
    detector = load_detector(args.model, args.task)
    regions = detector.labels == "regions"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.trainable.to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for file, drawing, class_map in zip(files, drawings, maps, strict=True):
        try:
            image = decode(file, str(file))
        except UserError as error:
            print(printable(f"skipped: {error}"), file=sys.stderr)
            continue
        found = detect(detector, image, args.threshold, device)
        names = [detector.names[c] for c in found.classes]
        scores = found.scores.tolist()
        texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
        texts = names if regions else texts
        draw_objects(image, found, texts).save(drawing)
        objects: list[dict[str, Any]] = [
            {"label": name, "score": round(score, 4), "box_xywh": [round(v, 2) for v in box]}
            for name, score, box in zip(names, scores, found.boxes.tolist(), strict=True)
        ]
        for entry, mask in zip(objects, [] if found.masks is None else found.masks, strict=False):
            entry["mask_rle"] = mask.coco()
        result = {"image": str(file), "drawing": str(drawing), "objects": objects}
        if regions:
            result["label_map"] = str(class_map)
            save_label_map(found, (image.shape[0], image.shape[1]), class_map)
        results.append(result)
        print(printable(f"{file}: {', '.join(texts) or 'nothing found'}"))
    if not results:
        raise UserError("none of the images could be read")
    write_whole(args.out / RESULTS, json.dumps(results, indent=1) + "\n")
    what = {
        "boxes": "boxes",
        "masks": "boxes and masks",
        "regions": "regions",
        "segments": "segments",
    }[detector.labels]
    maps_too = ", label maps of class indices beside the drawings" if regions else ""
    print(f"{len(results)} image(s) drawn; {what} in {args.out / RESULTS}{maps_too}")
    return results


def save_label_map(found: Objects, size: tuple[int, int], file: Path) -> None:
    """The class index of every pixel as a PNG, of 16 bits if there are more than 256 classes."""
    labels = label_map(found, size) - 1  # every pixel has a class
    Image.fromarray(labels.astype(np.uint8) if labels.max() < 256 else labels).save(file)


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among `paths` and the images in the folders among them."""
    for path in paths:
        if path.is_dir():
            names = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            yield from sorted(p for p in names if p.is_file())
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: no such file or folder")


def drawing_names(
    files: Sequence[Path], out: Path, ending: str = "", others: Sequence[Path] = ()
) -> list[Path]:
    """One PNG per image, under names that nothing has but an earlier drawing of ours.

    Args:
        ending: of the names before `.png`. others: places that are taken as well.

    Raises:
        UserError: if predictions.json there is not one of ours.
    """
    own = earlier_drawings(out)
    taken = {path.resolve() for path in (*files, *others)}
    names: list[Path] = []
    for file in files:
        stem = f"{file.stem}{ending}"
        place, number = out / f"{stem}.png", 2
        while place.resolve() in taken or (place.exists() and place.resolve() not in own):
            place, number = out / f"{stem}-{number}.png", number + 1
        taken.add(place.resolve())
        names.append(place)
    return names


def earlier_drawings(out: Path) -> set[Path]:
    """The pictures that predictions.json in `out` lists, which may be made anew.

    Raises:
        UserError: if that file is something else, and would be lost.
    """
    file = out / RESULTS
    if not file.exists():
        return set()
    try:
        rows = json.loads(file.read_bytes())
        names = [name for row in rows for name in (row["drawing"], row.get("label_map")) if name]
        return {(out / Path(name).name).resolve() for name in names}
    except (
        *(OSError, ValueError, TypeError, KeyError, AttributeError),
        RecursionError,
    ) as error:
        raise UserError(
            f"{file}: is not of an earlier prediction, and would be replaced; choose another --out"
        ) from error


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
        main(sys.argv[1:])
