"""What an evaluation costs the training after its predictions are there: `python -m benchmarks.evaluation`.

As before: rank 0 measures all and writes the files, the others wait. Now: the ranks measure together, without
the garbage collector, and another process writes. Both are followed by the same steps, whose time alone is
taken off: random boxes of 80 classes, 12 objects an image, eight photos to draw on.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from benchmarks.coco_metrics import SIDE, make_case
from benchmarks.conditions import conditions
from data.dataset import Data
from data.findings import Findings
from evaluation.metrics import measure
from evaluation.mistakes import analyse
from evaluation.predictions import Predictions
from report.evaluation import NUM_DRAWN, write_report
from run.aside import Aside
from settings.keys import EvalConfig

CLASSES = 80


def make_data(folder: Path, num_images: int, detections: int) -> tuple[Data, Predictions]:
    """A split whose first images are there, and predictions."""
    split, predictions, taxonomy = make_case(num_images, CLASSES, detections)
    rng = np.random.default_rng(0)
    files = [folder / f"{place}.jpg" for place in range(NUM_DRAWN)]
    for file in files:
        pixels = rng.integers(0, 255, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(file)
    split = replace(split, images=files)
    return Data(split, split, taxonomy, Findings()), predictions


def make_steps(accelerator: Accelerator, num: int) -> Callable[[], None]:
    """Steps of many small operations, as they are launched on a device, with one collective each."""
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(60)))
    inputs = torch.randn(4, 8)

    def steps() -> None:
        for _ in range(num):
            net(inputs).sum().backward()
            net.zero_grad()
            accelerator.gather(torch.zeros(1))

    return steps


def one(num_images: int, detections: int, rounds: int, num_steps: int) -> None:
    """Collective: called on every rank. Print a row for this number of processes."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    aside, cfg, main = Aside(), EvalConfig(), accelerator.is_main_process
    steps = make_steps(accelerator, num_steps)
    told: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        data, predictions = make_data(Path(name), num_images, detections)
        out = Path(name) / "report"

        def before() -> None:
            if main:
                with mock.patch("evaluation.coco.without_collector", contextlib.nullcontext):
                    told.append(measure("boxes", data.val, predictions, data.taxonomy))
                seen = analyse("boxes", data.val, predictions, data.taxonomy)
                write_report(out, told[-1], predictions, data, cfg, seen)

        def now() -> None:
            told.append(measure("boxes", data.val, predictions, data.taxonomy, accelerator))
            seen = analyse("boxes", data.val, predictions, data.taxonomy, accelerator)
            if main:
                aside.start(lambda: write_report(out, told[-1], predictions, data, cfg, seen))

        lost: dict[Callable[[], None], list[np.ndarray]] = {before: [], now: []}
        for _ in range(rounds):
            for way, seconds in lost.items():
                alone = seconds_of(accelerator, steps)
                seconds.append(seconds_of(accelerator, way, steps) - alone)
                assert aside.finish() is None
        if main:
            assert all(metrics == told[0] for metrics in told), "the same numbers"
            for place, what in enumerate(("wall", "CPU of the busiest rank")):
                rounds_of = [[float(pair[place]) for pair in pairs] for pairs in lost.values()]
                first, second = map(statistics.median, rounds_of)
                spread = "; ".join(" ".join(f"{s:.1f}" for s in own) for own in rounds_of)
                print(
                    f"| {accelerator.num_processes} | {what} | {first:.1f} | {second:.1f} | "
                    f"{first / second:.1f} | {spread} |"
                )
    accelerator.end_training()


def seconds_of(accelerator: Accelerator, *actions: Callable[[], None]) -> np.ndarray:
    """Collective: called on every rank. Until all ranks have done them, float64 [2]: wall seconds, and CPU
    seconds of the rank that took most, which say more on a machine without free cores."""
    accelerator.wait_for_everyone()
    start, begun = time.perf_counter(), time.process_time()
    for action in actions:
        action()
    own = torch.tensor([time.process_time() - begun], dtype=torch.float64)
    busiest = accelerator.gather(own).max().item()
    return np.array([time.perf_counter() - start, busiest])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.images, args.detections, args.rounds, args.steps)
        return
    print(f"{conditions()}; {args.images * args.detections:,} predictions\n")
    print("| Processes | Seconds | Lost before | Lost now | Ratio | Rounds: before; now |")
    print("|---|---|---|---|---|---|")
    for processes in args.processes:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), "-m", "benchmarks.evaluation", "--one"]
        for name in ("images", "detections", "rounds", "steps"):
            command += [f"--{name}", str(getattr(args, name))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print("\n".join(done.stdout.splitlines()[-2:]), flush=True)


if __name__ == "__main__":
    main()
