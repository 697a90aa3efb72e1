"""What a step of configs/coco.yaml costs by head: `python -m benchmarks.coco_step [--rounds 5]`.

DINOv3 ConvNeXt-T (random weights, frozen), images of 640 x 480 px, of which heads that stretch see 640 x 640 in rows
of their own; 2 to 7 objects an image. A step is forward, losses, backward, clipping and AdamW, once with the
backbone at work (live) and once with its maps given (stored). All heads take turns in one process; CPU seconds of
one thread.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextConfig
from transformers.utils import logging as transformers_logging

from benchmarks.conditions import conditions
from benchmarks.feature_cache import TINY_CONVNEXT
from data.batch import Batch
from data.objects import Objects
from data.taxonomy import Taxonomy
from model.build import build_model
from settings.keys import ImageSizeConfig, ModelConfig, OptimConfig
from training.optim import build_optimizer

CLASSES = 20
LANDSCAPE, SQUARE = (480, 640), (640, 640)
"""(height, width) of a canvas, px"""
OBJECTS = range(2, 8)
"""In an image, from round to round"""
DEFORMABLE = {"with_box_refine": True, "num_queries": 100, "dropout": 0.0}
REAL_TIME: dict[str, Any] = {
    **{"num_queries": 100, "num_denoising": 50, "decoder_layers": 4, "dropout": 0.0},
    **{"matcher_class_cost": 4.0},
}
DEIM = {**REAL_TIME, "weight_loss_mal": 4.0}
LITE = {**DEIM, "encoder_type": "lite", "encoder_layers": 0, "num_feature_levels": 2}
HEADS: dict[str, tuple[str, list[str] | None, dict[str, Any]]] = {
    "deformable_detr, 4 levels from stride 8, 6 encoder layers": (
        *("deformable_detr", None),
        {**DEFORMABLE, "num_feature_levels": 4},
    ),
    "deformable_detr, 3 levels from stride 16, 2 encoder layers": (
        *("deformable_detr", ["stage3", "stage4"]),
        {**DEFORMABLE, "num_feature_levels": 3, "encoder_layers": 2},
    ),
    "d_fine, strides 8, 16, 32": ("d_fine", None, {**REAL_TIME, "weight_loss_vfl": 4.0}),
    "deimv2, strides 8, 16, 32": ("deimv2", None, DEIM),
    "deimv2 lite, strides 16, 32": ("deimv2", ["stage3"], LITE),
}
"""Name: head, model.out_features, arguments; the first one is what configs/coco.yaml had"""


def make_batch(num: int, canvas: tuple[int, int]) -> Batch:
    """An image of random pixels with `num` random boxes."""
    draw = torch.Generator().manual_seed(num)
    boxes = torch.rand(num, 4, generator=draw) * torch.tensor([0.6, 0.6, 0.3, 0.3])
    boxes += torch.tensor([0.2, 0.2, 0.05, 0.05])
    classes = torch.randint(0, CLASSES, (num,), generator=draw)
    return Batch(
        torch.randint(0, 256, (1, 3, *canvas), dtype=torch.uint8, generator=draw),
        torch.ones(1, *canvas, dtype=torch.bool),
        Objects(boxes, classes, torch.zeros(num, dtype=torch.int64)),
        [num],
        orig_sizes=[LANDSCAPE],
        noise_keys=[0],
    )


class Case:
    """One head on the backbone, on one canvas."""

    def __init__(self, backbone: Path, name: str, canvas: tuple[int, int]):
        head, stages, head_args = HEADS[name]
        self.name, self.canvas = name, canvas
        cfg = ModelConfig(
            backbone=str(backbone),
            out_features=stages,
            head=head,  # type: ignore[arg-type]
            head_args=head_args,
        )
        names = tuple(f"class {c}" for c in range(CLASSES))
        taxonomy = Taxonomy(names, tuple(range(CLASSES)))
        self.detector = build_model(cfg, taxonomy, ImageSizeConfig(640))
        self.trainable = self.detector.trainable.train()
        self.trainable.prepare([make_batch(OBJECTS[0], canvas)])
        self.parameters = [p for p in self.trainable.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(
            self.detector.model, self.detector.backbone_module, OptimConfig()
        )

    def step(self, batch: Batch) -> float:
        """CPU seconds of a whole step."""
        start = time.process_time()
        counts = self.trainable.counts(batch).alone
        self.trainable(batch, counts).total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - start

    def maps(self, batch: Batch) -> tuple[float, tuple[torch.Tensor, ...]]:
        """CPU seconds of the backbone, and what it gives."""
        start = time.process_time()
        with torch.no_grad():
            pixels = self.trainable.normalization(batch.pixel_values, batch.pixel_mask)
            maps = self.detector.backbone_module(pixels).feature_maps
        return time.process_time() - start, maps

    def round(self, num_objects: int) -> tuple[float, float, float]:
        """CPU seconds of the backbone alone, of a live and of a stored step."""
        batch = make_batch(num_objects, self.canvas)
        backbone, maps = self.maps(batch)
        stored = dataclasses.replace(batch, maps=maps)
        return backbone, self.step(batch), self.step(stored)


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="one more is not counted")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the heads' names")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "convnext-t"
        DINOv3ConvNextBackbone(DINOv3ConvNextConfig(**TINY_CONVNEXT)).save_pretrained(folder)
        cases = [
            Case(folder, name, canvas)
            for name, (head, _, _) in HEADS.items()
            for canvas in ([LANDSCAPE] if head == "deformable_detr" else [LANDSCAPE, SQUARE])
            if name.startswith(tuple(args.only))
        ]
    print(conditions(), f"; medians of {args.rounds} rounds (lowest to highest)\n", sep="")
    times = [
        [case.round(OBJECTS[turn % len(OBJECTS)]) for case in cases]
        for turn in range(args.rounds + 1)
    ][1:]
    print(
        "| Head | Canvas | Trained parameters | Backbone, s | Live, s | Stored, s | Backbone's share "
        "| Faster than the first | Live over stored |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    first = times_of(times, 0)[1]
    for number, case in enumerate(cases):
        columns = times_of(times, number)
        backbone, live, stored = map(statistics.median, columns)
        faster = statistics.median(a / b for a, b in zip(first, columns[1], strict=True))
        gained = statistics.median(a / b for a, b in zip(columns[1], columns[2], strict=True))
        print(
            f"| {case.name} | {case.canvas[1]} x {case.canvas[0]} | {sum(p.numel() for p in case.parameters):,} "
            f"| {backbone:.2f} | {spread(columns[1])} | {spread(columns[2])} | {100 * backbone / live:.0f} % "
            f"| {faster:.2f} | {gained:.2f} |"
        )


def times_of(rounds: list[list[tuple[float, float, float]]], case: int) -> list[list[float]]:
    """Seconds of a case by column: backbone, live, stored; one value a round."""
    return [list(column) for column in zip(*(found[case] for found in rounds), strict=True)]


if __name__ == "__main__":
    main()
