"""Time and memory of COCO's metrics with many classes: `python -m benchmarks.coco_metrics`.

Ours, class by class, against the same library over all classes at once and against pycocotools,
each in a process of its own, on random objects with LVIS's shape: 1,203 classes of falling
frequency, 12 objects and 100 detections an image. The numbers of all are compared as well.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from faster_coco_eval import COCO, COCOeval_faster

from benchmarks.conditions import conditions
from data.coco_format import coco_content, coco_results
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.table import RecordTable
from data.taxonomy import Taxonomy
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions

OBJECTS = 12
DETECTIONS = 100
SIDE = 640


def make_case(
    num_images: int, num_classes: int, detections: int
) -> tuple[Split, Predictions, Taxonomy]:
    """Objects of random classes (the second is half as frequent as the first, and so on), and
    detections: every object shifted a little, and random boxes."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, num_classes + 1)
    frequency /= frequency.sum()

    def boxes(num: int) -> np.ndarray:
        return np.column_stack([rng.uniform(0, 500, (num, 2)), rng.uniform(8, 140, (num, 2))])

    def draw(num: int) -> Objects:
        image = np.repeat(np.arange(num_images), num)
        classes = rng.choice(num_classes, len(image), p=frequency)
        return Objects(boxes(len(image)), classes, image)

    truth = draw(OBJECTS)
    shifted = truth.boxes + rng.normal(0, 4, truth.boxes.shape).clip(-7, 7)
    found = Objects.concat(
        [Objects(shifted, truth.classes, truth.image), draw(detections - OBJECTS)]
    )
    found = Objects(found.boxes, found.classes, found.image, scores=rng.uniform(size=len(found)))
    n = len(truth)
    areas = truth.boxes[:, 2:].prod(1)
    truth = Objects(
        truth.boxes, truth.classes, truth.image, areas, np.zeros(n, bool), np.arange(1, n + 1)
    )
    records = [
        Record(str(i), str(i), SIDE, SIDE, objects)
        for i, objects in enumerate(truth.by_image(num_images))
    ]
    names = tuple(f"class {c}" for c in range(num_classes))
    order = np.lexsort((-found.scores, found.image))
    taxonomy = Taxonomy(names, tuple(range(num_classes)))
    return Split(RecordTable.of(records), [], {}), Predictions(found.take(order)), taxonomy


def at_once(
    split: Split, predictions: Predictions, taxonomy: Taxonomy, library: str
) -> dict[str, float]:
    """All classes in one evaluation."""
    images = [{"id": i, "width": SIDE, "height": SIDE} for i in range(len(split))]
    content = coco_content(images, split.objects, taxonomy)
    results = coco_results(predictions.objects, range(len(split)), taxonomy.category_ids)
    if library == "pycocotools":
        truth = pycocotools.coco.COCO()
        truth.dataset = content
        truth.createIndex()
        evaluator = pycocotools.cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
    else:
        truth = COCO(content)
        evaluator = COCOeval_faster(truth, truth.loadRes(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    places = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AR_100": 8}
    return {name: float(evaluator.stats[place]) for name, place in places.items()}


WAYS: dict[str, Callable[[Split, Predictions, Taxonomy], dict[str, float]]] = {
    "ours": coco_metrics,
    "faster-coco-eval at once": functools.partial(at_once, library="faster-coco-eval"),
    "pycocotools at once": functools.partial(at_once, library="pycocotools"),
}


def measure(way: str, case: tuple[int, int, int]) -> None:
    """Print seconds, bytes and metrics of one way as JSON: run in a process of its own."""
    made = make_case(*case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    metrics = WAYS[way](*made)
    seconds = time.perf_counter() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "MB": megabytes, "metrics": metrics}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--detections", type=int, default=DETECTIONS)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    case = (args.images, args.classes, args.detections)
    if args.one:
        measure(args.one, case)
        return
    found: dict[str, list[dict]] = {way: [] for way in args.ways}
    command = [sys.executable, "-m", "benchmarks.coco_metrics", "--images", str(args.images)]
    command += ["--classes", str(args.classes), "--detections", str(args.detections), "--one"]
    for _ in range(args.repeats):
        for way in args.ways:
            run = subprocess.run([*command, way], check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(json.loads(run.stdout.splitlines()[-1]))
    print(f"{conditions()}; {args.detections} detections an image\n")
    print("| | Seconds | MB beside the data | AP | AR_100 | Largest difference from ours |")
    print("|---|---|---|---|---|---|")
    reference = found[args.ways[0]][0]["metrics"]
    for way, runs in found.items():
        metrics = runs[0]["metrics"]
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AR_100")
        apart = max(abs(metrics[n] - reference[n]) for n in names)
        seconds, megabytes = (statistics.median(r[k] for r in runs) for k in ("seconds", "MB"))
        print(
            f"| {way} | {seconds:.1f} | {megabytes:.0f} | {metrics['AP']:.4f} | {metrics['AR_100']:.4f} | {apart:.1e} |"
        )


if __name__ == "__main__":
    main()
