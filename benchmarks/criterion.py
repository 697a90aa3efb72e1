"""Our criterion against transformers': `python -m benchmarks.criterion [--device cuda]`.

Forward and backward of matching and losses alone, on random predictions of 6 decoder layers, both
in turn in one run; medians over repetitions, and of the ratios of neighbours. On a CPU seconds are
CPU seconds of one thread, on a GPU those of the clock; there the copies of the cost matrices to the
host dominate: transformers makes one per layer, ours one per micro-batch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DeformableDetrConfig, DetrConfig

from benchmarks.conditions import conditions
from benchmarks.default_criterion import their_losses
from data.batch import Batch
from data.objects import Objects
from model.losses.set_criterion import SetCriterion, SetOutputs
from model.losses.terms import Losses

LAYERS = 6
CLASSES = 20
BOXES = (0, 3, 7, 20)
"""Boxes of the images of a batch, over and over"""


def make_case(
    focal: bool, queries: int, batch: int, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Functions that do one forward and backward with ours and with transformers' criterion."""
    kind: Any = DeformableDetrConfig if focal else DetrConfig
    names = {i: str(i) for i in range(CLASSES)}
    config = kind(
        auxiliary_loss=True,
        decoder_layers=LAYERS,
        num_queries=queries,
        id2label=names,
        backbone_config={"model_type": "resnet"},
    )
    torch.manual_seed(0)
    width = CLASSES if focal else CLASSES + 1
    logits = torch.randn(LAYERS, batch, queries, width, device=device, requires_grad=True)
    raw = torch.randn(LAYERS, batch, queries, 4, device=device, requires_grad=True)
    tables = []
    for row in range(batch):
        num = BOXES[row % len(BOXES)]
        centres, sides = torch.rand(num, 2) * 0.6 + 0.2, torch.rand(num, 2) * 0.3 + 0.02
        boxes = torch.cat([centres, sides], 1).numpy()
        tables.append(Objects(boxes, torch.randint(0, CLASSES, (num,)).numpy()))
    images = torch.zeros(batch, 1, 1, 1)
    objects = Objects.of_images(tables).each(torch.from_numpy)
    num_objects = [len(table) for table in tables]
    targets = Batch(images, images, objects, num_objects).to(device)
    ours = SetCriterion(config, focal, queries)

    def step(criterion: Callable[[SetOutputs], Losses]) -> None:
        criterion(SetOutputs(logits, raw.sigmoid())).total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    counts = ours.counts(targets).alone
    return (
        lambda: step(lambda outputs: ours(outputs, targets, counts)),
        lambda: step(lambda outputs: their_losses(outputs, targets, config, focal)),
    )


def times_ms(
    functions: tuple[Callable[[], None], ...], repeats: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Milliseconds of each function in each round, measured in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for round_number in range(repeats + 2):
        for function, record in zip(functions, times, strict=True):
            start = clock()
            function()
            if round_number >= 2:
                record.append(1e3 * (clock() - start))
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criterion", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    print(f"{conditions()}; {device}, {LAYERS} layers, medians of {args.repeats}\n")
    print(
        "| Head | Queries | Batch | Ours, ms | transformers, ms | Ratio (middle half) |\n|---|---|---|---|---|---|"
    )
    for focal in (False, True):
        for queries in (100, 300):
            for batch in (4, 16):
                case = make_case(focal, queries, batch, device)
                ours, theirs = times_ms(case, args.repeats, clock)
                low, ratio, high = statistics.quantiles(
                    b / a for a, b in zip(ours, theirs, strict=True)
                )
                medians = " | ".join(f"{statistics.median(t):.1f}" for t in (ours, theirs))
                name = "Deformable DETR" if focal else "DETR"
                print(
                    f"| {name} | {queries} | {batch} | {medians} | {ratio:.2f} ({low:.2f} to {high:.2f}) |"
                )


if __name__ == "__main__":
    main()
