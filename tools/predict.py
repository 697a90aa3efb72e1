"""Find objects in images and videos, draw them and write them as JSON.

`python -m tools.predict --model runs/demo/export photo.jpg folder/ 'more/*.png' clip.mp4 --out predictions`

Exit status: 0, or 1 if an input could not be read (it is named, and the others are done), or 2 if nothing was done.
"""

import argparse
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line, printable
from settings.tasks import Task

DEFAULT_THRESHOLD = 0.5


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="exported folder or Hub id")
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        help="images, videos, folders of them (with all folders below), and patterns in quotes",
    )
    parser.add_argument("--out", type=Path, help="folder for drawings and predictions.json")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything found in COCO's results form"
    )
    parser.add_argument(
        "--ids",
        type=Path,
        metavar="FILE",
        help="COCO annotation file whose ids of images and classes --json has (default: images from 1, classes "
        "from 0)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help=f"lowest score (default: what the model recommends, else {DEFAULT_THRESHOLD})",
    )
    parser.add_argument(
        "--task",
        choices=typing.get_args(Task),
        help="of a model for several tasks (default: what it was trained for here)",
    )
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: 8)")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="of videos every Nth frame alone (default: 1, all of them)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="threads that decode and draw (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.out is None and args.json is None:
        raise UserError("give --out FOLDER for drawings, --json FILE for COCO results, or both")
    if args.ids is not None and args.json is None:
        raise UserError("--ids is for the results of --json FILE, which is not given")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: must lie between 0 and 1")
    for name in ("batch", "every", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    refuse_unwritable("--out", args.out, folder=True)
    refuse_unwritable("--json", args.json)
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.objects import Objects
from devices import compute_in_fp32
from disk import write_whole
from export.detector import LoadedDetector, load_detector
from tools.prediction_files import (
    IMAGE_SUFFIXES,
    LABEL_MAPS,
    NAMES,
    RESULTS,
    drawing_names,
    image_files,
    refuse_lost_names,
)
from tools.prediction_results import CocoResults, refuse_lost_results
from tools.prediction_writer import Places, Writer


@dataclass
class Outcome:
    """What came of a prediction."""

    results: list[dict[str, Any]]
    """What predictions.json holds"""
    unreadable: list[str]
    """What could not be read, and why"""


def main(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Predict what a command line asks for; what predictions.json holds. See `predict`."""
    return predict(arguments(argv)).results


def predict(args: argparse.Namespace) -> Outcome:
    """Predict for all images and videos; what cannot be read is named and left out.

    Raises:
        UserError: for a missing input, if nothing could be read, and for what would be lost.
    """
    files = list(image_files(args.images, args.out))
    if not files:
        named = ", ".join(map(str, args.images))
        raise UserError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) or videos in {named}")
    if args.json is not None:
        refuse_lost_results(args.json, args.out)
    places = None
    if args.out is not None:
        maps = drawing_names(files, args.out, LABEL_MAPS)
        places = Places(drawing_names(files, args.out), maps)
    detector = load_detector(args.model, args.task)
    coco = CocoResults(files, detector.names, args.ids) if args.json else None
    threshold, whose = lowest_score(args, detector)
    compute_in_fp32()
    detector.trainable.to("cuda" if torch.cuda.is_available() else "cpu")
    if args.out is not None:
        if detector.labels == "regions":
            refuse_lost_names(args.out)
            (args.out / LABEL_MAPS).mkdir(parents=True, exist_ok=True)
        args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with ThreadPoolExecutor(args.workers) as pool:
        writer = Writer(detector, files, places, coco, pool, threshold)
        try:
            writer.predict_all(args.batch, args.every)
        except BaseException:
            writer.give_up()
            pool.shutdown(cancel_futures=True)
            raise
    seconds = time.perf_counter() - start
    outcome = Outcome(writer.results, writer.unreadable)
    if not outcome.results:
        raise UserError("none of the images could be read")
    if coco is not None:
        coco.write(args.json)
    if args.out is not None:
        write_whole(args.out / RESULTS, json.dumps(outcome.results, indent=1) + "\n")
        if detector.labels == "regions":
            names = json.dumps(dict(enumerate(detector.names)), indent=1)
            write_whole(args.out / NAMES, names + "\n")
    scores = "" if detector.labels == "regions" else f" with scores from {threshold:g} on ({whose})"
    print(printable(summary(outcome, writer.kinds, detector, seconds, args, scores)))
    return outcome


def lowest_score(args: argparse.Namespace, detector: LoadedDetector) -> tuple[float, str]:
    """The threshold, and where it is from."""
    if args.threshold is not None:
        return args.threshold, "as --threshold says"
    if detector.threshold is not None:
        return detector.threshold, "the model's own; --threshold changes it"
    return DEFAULT_THRESHOLD, "the usual, as the model recommends none; --threshold changes it"


def summary(
    outcome: Outcome,
    kinds: Counter[str],
    detector: LoadedDetector,
    seconds: float,
    args: argparse.Namespace,
    scores: str,
) -> str:
    """The last line: how many, how fast, what, from which score on, and where it is."""
    what = {"masks": "boxes and masks"}.get(detector.labels, detector.labels)
    num = len(outcome.results)
    parts = [f"{num} image(s){' drawn' if args.out else ''}, {num / seconds:.1f} images/s"]
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    more = f" and {len(kinds) - 5} more classes" if len(kinds) > 5 else ""
    parts.append((f"found {counted}{more}" if kinds else "nothing found") + scores)
    if args.out:
        maps_too = f"; label maps in {args.out / LABEL_MAPS}, names of their values in {NAMES}"
        own = maps_too if detector.labels == "regions" else ""
        parts.append(f"{what} in {args.out / RESULTS}{own}")
    if args.json:
        parts.append(f"COCO results in {args.json}")
    if outcome.unreadable:
        parts.append(f"{len(outcome.unreadable)} input(s) could not be read, named above")
    return "; ".join(parts)


def detect(
    detector: LoadedDetector, image: np.ndarray, threshold: float, device: torch.device
) -> Objects:
    """Objects in uint8 [H, W, 3] by falling score; boxes xywh in px of the image, masks on it."""
    detector.trainable.to(device)
    return detector.find_on([detector.views(image)], threshold)[0]


if __name__ == "__main__":
    with ending_with_one_line():
        sys.exit(1 if predict(GIVEN).unreadable else 0)
