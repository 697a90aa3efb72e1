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

from data.batch import Sample
from data.feed.collate import collate
from data.feed.transforms import resize
from data.images.decode import decode
from data.images.headers import EXTENSIONS
from data.objects import Objects
from disk import write_whole
from errors import UserError, ending_with_one_line, printable
from export.detector import LoadedDetector, load_detector
from report.drawing import draw_objects

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
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: must lie between 0 and 1")
    files = list(image_files(args.images))
    if not files:
        raise UserError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {args.images}")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file")
    drawings = drawing_names(files, args.out)
    detector = load_detector(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.trainable.to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for file, drawing in zip(files, drawings, strict=True):
        try:
            image = decode(file, str(file))
        except UserError as error:
            print(printable(f"skipped: {error}"), file=sys.stderr)
            continue
        found = detect(detector, image, args.threshold, device)
        names = [detector.names[c] for c in found.classes]
        texts = [f"{name} {score:.2f}" for name, score in zip(names, found.scores, strict=True)]
        draw_objects(image, found, texts).save(drawing)
        objects: list[dict[str, Any]] = [
            {"label": name, "score": round(score, 4), "box_xywh": [round(v, 2) for v in box]}
            for name, score, box in zip(
                names, found.scores.tolist(), found.boxes.tolist(), strict=True
            )
        ]
        for entry, mask in zip(objects, [] if found.masks is None else found.masks, strict=False):
            entry["mask_rle"] = mask.coco()
        results.append({"image": str(file), "drawing": str(drawing), "objects": objects})
        print(printable(f"{file}: {', '.join(texts) or 'nothing found'}"))
    if not results:
        raise UserError("none of the images could be read")
    write_whole(args.out / RESULTS, json.dumps(results, indent=1) + "\n")
    print(
        f"{len(results)} image(s) drawn; boxes{' and masks' if detector.has_masks else ''} in {args.out / RESULTS}"
    )
    return results


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


def drawing_names(files: Sequence[Path], out: Path) -> list[Path]:
    """One PNG per image, under names that nothing has but an earlier drawing of ours.

    Raises:
        UserError: if predictions.json there is not one of ours.
    """
    own = earlier_drawings(out)
    taken = {path.resolve() for path in files}
    names: list[Path] = []
    for file in files:
        place, number = out / f"{file.stem}.png", 2
        while place.resolve() in taken or (place.exists() and place.resolve() not in own):
            place, number = out / f"{file.stem}-{number}.png", number + 1
        taken.add(place.resolve())
        names.append(place)
    return names


def earlier_drawings(out: Path) -> set[Path]:
    """The drawings that predictions.json in `out` lists, which may be made anew.

    Raises:
        UserError: if that file is something else, and would be lost.
    """
    file = out / RESULTS
    if not file.exists():
        return set()
    try:
        return {
            (out / Path(row["drawing"]).name).resolve() for row in json.loads(file.read_bytes())
        }
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
