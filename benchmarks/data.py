"""One training sample: the published recipe's path against ours, per image and on one core.

`python -m benchmarks.data [--data FOLDER]`: photos of an image folder with metadata.jsonl, the
recipe's augmentations (flip, affine), the same output sizes. Both paths take turns, image by image;
times are CPU times of the one thread, medians. Then batches through 1 and 2 worker processes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from PIL import Image
from transformers import DetrImageProcessor

from benchmarks.conditions import conditions
from data.build import build_data
from data.canvas import resized_sizes, step_canvas
from data.feed.collate import collate
from data.feed.loader import TrainDataset, batches_of, train_loader
from data.feed.sampler import SampleRef, StepSampler
from data.schema import Split
from disk import ROOT
from settings.keys import DataConfig, ImageSizeConfig

SIZES = ((800, 1333), (400, 667), (256, 427))
"""(shortest, longest) side, px"""
AFFINE = {
    "rotate": [-5, 5],
    "shear": [-5, 5],
    "translate_percent": {"x": [-0.05, 0.05], "y": [-0.05, 0.05]},
    "p": 0.5,
}
FOLDERS = ("plates-openimages-416", "blood-cells")
BATCH = 8


def recipe_augment() -> Callable[
    [Path, np.ndarray, np.ndarray], tuple[Image.Image, dict[str, Any]]
]:
    """The recipe's way to an augmented image with its annotations: Pillow, albumentations, Pillow again."""
    compose = A.Compose(
        [A.HorizontalFlip(p=0.5), A.Affine(**{k: _tuples(v) for k, v in AFFINE.items()})],
        bbox_params=A.BboxParams(format="coco", label_fields=["category"], clip=True),
    )

    def augment(
        path: Path, boxes: np.ndarray, classes: np.ndarray
    ) -> tuple[Image.Image, dict[str, Any]]:
        with Image.open(path) as opened:
            image = np.array(opened.convert("RGB"))
        out = compose(image=image, bboxes=boxes, category=classes)
        annotations = [
            {
                "image_id": 0,
                "category_id": int(c),
                "bbox": list(b),
                "area": b[2] * b[3],
                "iscrowd": 0,
            }
            for b, c in zip(out["bboxes"], out["category"], strict=True)
        ]
        return Image.fromarray(out["image"]), {"image_id": 0, "annotations": annotations}

    return augment


def recipe_processor(shortest: int, longest: int) -> Any:
    """The recipe's image processor."""
    return DetrImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest})


def recipe_path(shortest: int, longest: int) -> Callable[[Path, np.ndarray, np.ndarray], object]:
    """The recipe's transform of one image."""
    augment = recipe_augment()
    processor = recipe_processor(shortest, longest)

    def transform(path: Path, boxes: np.ndarray, classes: np.ndarray) -> object:
        image, annotations = augment(path, boxes, classes)
        return processor(images=image, annotations=annotations, return_tensors="pt")

    return transform


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def data_config(folder: Path, shortest: int, longest: int) -> DataConfig:
    """The recipe's data, as our configuration has it."""
    return DataConfig(
        source="imagefolder",
        path=str(folder),
        val_split="val",
        image_size=ImageSizeConfig(longest, shortest),
        augment=[{"HorizontalFlip": {"p": 0.5}}, {"Affine": AFFINE}],
    )


def prepared(cfg: DataConfig) -> tuple[Split, np.ndarray, TrainDataset]:
    """Training split, sizes after resizing, and dataset."""
    split = build_data(cfg, 0).train
    return split, resized_sizes(split.table.sizes, cfg.image_size), TrainDataset(split, cfg, 0)


def images_per_second(folder: Path, workers: int, steps: int) -> float:
    """Batches of 8 through worker processes to a main process that does nothing else."""
    cfg = replace(data_config(folder, 400, 667), num_workers=workers)
    _, sizes, dataset = prepared(cfg)
    loader = train_loader(dataset, StepSampler(sizes, BATCH, BATCH, 0), pin=False)
    with batches_of(loader) as batches:
        for _ in range(2 * workers):
            next(batches)  # the workers have started
        start = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return steps * BATCH / (time.perf_counter() - start)


def compare(folder: Path, shortest: int, longest: int, images: int) -> dict[str, float]:
    """Median ms per image of both paths, and of normalising one of our images afterwards."""
    cfg = data_config(folder, shortest, longest)
    split, sizes, dataset = prepared(cfg)
    theirs = recipe_path(shortest, longest)
    times: dict[str, list[float]] = {"recipe": [], "ours": [], "normalise": []}
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    for index in range(min(images, len(split))):
        path, record = split.images[index], split.records[index]
        assert isinstance(path, Path)
        path.read_bytes()  # both find it in the page cache
        start = time.thread_time()
        theirs(path, record.objects.boxes, record.objects.classes)
        between = time.thread_time()
        ref = SampleRef(index, 0, step_canvas(sizes[index : index + 1]))
        batch = collate([dataset[ref]])
        end = time.thread_time()
        (batch.pixel_values.float() / 255 - mean) / mean
        times["recipe"].append(between - start)
        times["ours"].append(end - between)
        times["normalise"].append(time.thread_time() - end)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    default = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of image folders")
    parser.add_argument("--images", type=int, default=60, help="that both paths take")
    parser.add_argument("--steps", type=int, default=40, help="batches through workers in a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{conditions()}; medians of {args.images} photos\n")
    print("| Images | Size | Recipe, ms | Ours, ms | Ratio | Normalising ours on this CPU, ms |")
    print("|---|---|---|---|---|---|")
    for name in FOLDERS:
        for shortest, longest in SIZES:
            row = compare(args.data / name, shortest, longest, args.images)
            print(
                f"| {name} | {shortest}/{longest} | {row['recipe']:.1f} | {row['ours']:.1f} "
                f"| {row['recipe'] / row['ours']:.1f} | {row['normalise']:.1f} |"
            )
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for workers, values in rates.items():
            values.append(images_per_second(args.data / FOLDERS[0], workers, args.steps))
    one, two = (statistics.median(values) for values in rates.values())
    print(f"\n{one:.0f} images/s with 1 worker, {two:.0f} with 2 ({FOLDERS[0]}, 400/667)")


if __name__ == "__main__":
    main()
