"""Our whole loop against the published recipe's: `python -m benchmarks.whole_loop [--backbone FOLDER]`.

DETR on the same frozen backbone, the same photos, augmentation, sizes, batch, starting weights and optimizer. The
recipe: Pillow, albumentations, DetrImageProcessor, batches at random padded to their largest image, the loss of
DetrForObjectDetection, a plain accelerate loop. Ours is `train` of train_accelerate.py as it stands, with its log
lines. One step of each in turn; data is loaded in the same process, so its time is in the step. CPU seconds of one
thread, the first step of each left out.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    DetrForObjectDetection,
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
)
from transformers.utils import logging as transformers_logging

from benchmarks.conditions import conditions
from benchmarks.data import data_config, recipe_augment, recipe_processor
from benchmarks.feature_cache import TINY_CONVNEXT
from benchmarks.padding import SHAPES
from data.batch import Batch
from data.feed.loader import batches_of
from data.schema import Split
from disk import ROOT
from run.build import Run, build_run, start_processes
from settings.keys import (
    Config,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from train_accelerate import train

SIZES = ((400, 667), (800, 1333))
"""(shortest, longest) side, px"""
OPTIM = OptimConfig(lr=1e-5, max_grad_norm=0.1, warmup_steps=1, schedule="constant")
BATCH = 4


class EnoughError(Exception):
    """All rounds are measured."""


@dataclass(frozen=True)
class Step:
    """What one step took."""

    seconds: float
    """Of the CPU, all of it"""
    data_s: float
    """Of these, until its batch was there"""
    pixels: int
    """Of the padded batch"""


def photo_shapes(folder: Path, out: Path) -> Path:
    """A copy of an image folder whose square images are stretched to shapes that photos have."""
    for split in ("train", "val"):
        (out / split).mkdir(parents=True)
        lines = (folder / split / "metadata.jsonl").read_text().splitlines()
        shapes = itertools.cycle(
            [s for s, share in SHAPES.items() for _ in range(round(share * 25))]
        )
        rows = []
        for row, (height, width) in zip(map(json.loads, lines), shapes, strict=False):
            with Image.open(folder / split / row["file_name"]) as image:
                image.resize((width, height)).save(out / split / row["file_name"], quality=90)
            x, y = width / row["width"], height / row["height"]
            objects = row["objects"]
            objects["bbox"] = [[a * x, b * y, c * x, d * y] for a, b, c, d in objects["bbox"]]
            objects["area"] = [c * d for _, _, c, d in objects["bbox"]]
            rows.append(json.dumps({**row, "width": width, "height": height}))
        (out / split / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    (out / "categories.json").write_text((folder / "categories.json").read_text())
    return out


def our_run(photos: Path, backbone: Path, size: tuple[int, int], place: Path) -> Run:
    """A run of ours, built and ready for its first step."""
    place.mkdir()
    cfg = Config(
        run=RunConfig(output_dir=str(place), tracker="none", draw_batches=0, pictures=False),
        data=replace(data_config(photos, *size), num_workers=0),
        model=ModelConfig(backbone=str(backbone), head="detr"),
        optim=OPTIM,
        train=TrainConfig(steps=100_000, global_batch_size=BATCH),
        eval=EvalConfig(metric="AP"),
    )
    return build_run(cfg, start_processes(cfg))


def recipe_loader(split: Split, size: tuple[int, int]) -> DataLoader:
    """Batches of the recipe: any images together, padded to the largest of them."""
    augment = recipe_augment()
    processor = recipe_processor(*size)

    def collate(indices: list[int]) -> Any:
        records = [split.records[index] for index in indices]
        pairs = [
            augment(cast(Path, split.images[index]), record.objects.boxes, record.objects.classes)
            for index, record in zip(indices, records, strict=True)
        ]
        images, annotations = zip(*pairs, strict=True)
        return processor(images=list(images), annotations=list(annotations), return_tensors="pt")

    indices: Any = range(len(split))
    return DataLoader(indices, BATCH, shuffle=True, collate_fn=collate, drop_last=True)


def recipe_steps(run: Run, size: tuple[int, int]) -> Iterator[Step]:
    """Take a step of the recipe each time."""
    model = DetrForObjectDetection(run.detector.model.config)
    model.load_state_dict(run.detector.model.state_dict())
    model.model.backbone.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)
    accelerator = Accelerator()
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, recipe_loader(run.data.train, size)
    )
    model.train()
    while True:
        start = time.process_time()
        for batch in loader:
            data_s = time.process_time() - start
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            yield Step(time.process_time() - start, data_s, batch["pixel_mask"].numel())
            start = time.process_time()


def in_turn(
    stream: Iterator[Batch], theirs: Iterator[Step], rounds: int, found: list[tuple[Step, Step]]
) -> Iterator[Batch]:
    """Our stream; between two of its batches our loop takes its step, and then the recipe takes one."""
    for _ in range(rounds + 1):
        start = time.process_time()
        batch = next(stream)
        data_s = time.process_time() - start
        yield batch
        ours = Step(time.process_time() - start, data_s, batch.pixel_mask.numel())
        found.append((ours, next(theirs)))
    raise EnoughError


def compare(run: Run, size: tuple[int, int], rounds: int) -> list[tuple[Step, Step]]:
    """Steps of ours and of the recipe, round by round."""
    found: list[tuple[Step, Step]] = []
    theirs = recipe_steps(run, size)
    model, run.optimizer = run.accelerator.prepare(run.detector.trainable, run.optimizer)
    loader, accumulation = run.train_loader()
    with run.stop.listening(), batches_of(loader) as stream, contextlib.suppress(EnoughError):
        train(run, model, in_turn(stream, theirs, rounds, found), accumulation)
    return found[1:]  # the first step allocates, and does not count


def row(found: list[tuple[Step, Step]]) -> str:
    """Cells of the table."""
    ours, theirs = zip(*found, strict=True)
    speeds = [BATCH / statistics.median(s.seconds for s in steps) for steps in (theirs, ours)]
    shares = [
        100 * sum(s.data_s for s in steps) / sum(s.seconds for s in steps)
        for steps in (theirs, ours)
    ]
    low, _, high = statistics.quantiles(b.seconds / a.seconds for a, b in found)
    padded = sum(s.pixels for s in theirs) / sum(s.pixels for s in ours)
    return (
        f"{speeds[0]:.2f} | {speeds[1]:.2f} | {speeds[1] / speeds[0]:.2f} ({low:.2f} to {high:.2f}) "
        f"| {padded:.2f} | {shares[0]:.0f} %, {shares[1]:.0f} %"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT.parent / "shared" / "data" / "plates-openimages-416"
    parser.add_argument("--data", type=Path, default=default, help="image folder")
    parser.add_argument("--backbone", type=Path, help="folder; default: ConvNeXt-T, random weights")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[400, 800], help="shortest side, px"
    )
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    print(f"{conditions()}; batch {BATCH}, {args.rounds} rounds\n")
    print(
        "| Photos | Size | Recipe, images/s | Ours, images/s | Ratio of medians (middle half of rounds) "
        "| Padded pixels, recipe over ours | Data's part of the step, recipe and ours |\n"
        "|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        backbone = args.backbone or random_backbone(place / "convnext-t")
        shaped = photo_shapes(args.data, place / "shaped")
        for number, (photos, size) in enumerate(itertools.product((args.data, shaped), SIZES)):
            if size[0] not in args.sizes:
                continue
            with contextlib.redirect_stdout(sys.stderr):  # the loop's own lines
                run = our_run(photos, backbone, size, place / str(number))
                cells = row(compare(run, size, args.rounds))
            kind = "photo shapes" if photos == shaped else "square, as they are"
            print(f"| {kind} | {size[0]}/{size[1]} | {cells} |", flush=True)


def random_backbone(folder: Path) -> Path:
    """DINOv3 ConvNeXt-T with random weights."""
    torch.manual_seed(0)
    DINOv3ConvNextBackbone(DINOv3ConvNextConfig(**TINY_CONVNEXT)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
