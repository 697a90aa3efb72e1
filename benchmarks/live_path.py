"""What makes steps with the backbone at work cheaper: batch norms folded into convolutions, memory that the C library
keeps, AdamW in one kernel; each against its absence.

`python -m benchmarks.live_path [--backbone FOLDER] [--only Backbone AdamW Steps]`

CPU seconds of one thread, with and without in turn. Steps are whole ones with their data, each way in processes of its
own, since nobody can take the settings of the C library back.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import HGNetV2Backbone, ResNetBackbone, ResNetConfig
from transformers.models.deformable_detr.modeling_deformable_detr import replace_batch_norm
from transformers.utils import logging as transformers_logging

from benchmarks.feature_cache import cases, seconds_of
from data.feed.allocator import keep_freed_memory
from model.folding import fold, unfolded
from model.stages import freeze
from run.build import Run, build_run, start_processes
from settings.load import load_config
from training.optim import build_optimizer

LEFT_ALONE = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
"""A setting of its own, which is glibc's default: ours are not made beside it"""
PIXELS = (4, 3, 416, 416)
SMALL_RESNET: dict[str, Any] = {
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
}
EVERYTHING = "folded, kept memory, fused"
Pair = tuple[float, float]


def in_turn(without: Callable[[], float], with_it: Callable[[], float], rounds: int) -> list[Pair]:
    """Seconds of both, a round after one that does not count, each first in every other one."""
    pairs = []
    for turn in range(rounds + 1):
        if turn % 2:
            one = without()
            pairs.append((one, with_it()))
        else:
            other = with_it()
            pairs.append((without(), other))
    return pairs[1:]


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def backbone_rows(given: str | None, rounds: int) -> Iterator[tuple[str, list[Pair]]]:
    """Forward passes of frozen backbones as detectors have them, on their own tensors and on the folded copy."""
    last: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
    found: dict[str, Any] = {
        "ResNet-18": ResNetBackbone(ResNetConfig(**SMALL_RESNET, **last)),
        "ResNet-50": ResNetBackbone(ResNetConfig(**last)),
    }
    if given is not None:
        found[Path(given).name] = HGNetV2Backbone.from_pretrained(given)
    pixels = torch.rand(PIXELS)
    for name, backbone in found.items():
        freeze(backbone)
        replace_batch_norm(backbone)
        fold(backbone)

        def own(backbone: Any = backbone) -> float:
            with unfolded(backbone):
                return seconds(lambda: backbone(pixels))

        def folded(backbone: Any = backbone) -> float:
            return seconds(lambda: backbone(pixels))

        yield f"Backbone {name}, 416 px, batch 4: folded", in_turn(own, folded, rounds)


def built(arguments: str, folder: Path) -> Run:
    """The run of a command line, with the backbone at work."""
    output = Path(tempfile.mkdtemp(dir=folder))
    more = f"--data.cache_features 0 --run.output_dir {output} --run.draw_batches 0 --run.pictures false"
    cfg = load_config([*arguments.split(), *more.split()])
    run = build_run(cfg, start_processes(cfg))
    run.detector.trainable.train()
    return run


def optimizer_of(run: Run, fused: bool) -> torch.optim.Optimizer:
    """A new one for the run's detector."""
    detector = run.detector
    return build_optimizer(
        detector.model, detector.backbone_module, run.cfg.optim, detector.fresh, fused=fused
    )


def optimizer_rows(
    commands: dict[str, str], folder: Path, rounds: int
) -> Iterator[tuple[str, list[Pair]]]:
    """Steps of AdamW alone, with random gradients."""
    for name, arguments in commands.items():
        run = built(arguments, folder)
        plain, fused = (optimizer_of(run, fused=way) for way in (False, True))
        parameters = [p for group in plain.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        millions = sum(p.numel() for p in parameters) / 1e6
        pairs = in_turn(lambda o=plain: seconds(o.step), lambda o=fused: seconds(o.step), rounds)  # type: ignore[misc]
        yield f"AdamW, {millions:.1f} M parameters ({name.partition(',')[0]}): fused", pairs


def one_way(arguments: str, plain: bool, steps: int, folder: Path) -> None:
    """In a process of its own: print CPU seconds of a step and the most memory it had, MB.

    Args:
        plain: neither folded nor fused.
    """
    run = built(arguments, folder)
    if plain:
        run.optimizer = optimizer_of(run, fused=False)
        with unfolded(run.detector.model):
            found = seconds_of(run, steps)
    else:
        found = seconds_of(run, steps)
    print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def step_rows(
    commands: dict[str, str], folder: Path, rounds: int, steps: int
) -> Iterator[tuple[str, list[Pair]]]:
    """Whole steps, without kept memory and without anything, against everything."""
    for name, arguments in commands.items():
        memory: dict[str, list[float]] = {}

        def measured(way: str, arguments: str = arguments, memory: Any = memory) -> float:
            command = [sys.executable, "-m", "benchmarks.live_path", "--steps", str(steps)]
            command += ["--one", arguments, *(["--plain"] if way == "plain" else [])]
            own = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
            environment = own if way == "all" else {**own, **LEFT_ALONE}
            told = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            found, most = json.loads(told.stdout.splitlines()[-1])
            memory.setdefault(way, []).append(most)
            return float(found)

        for way, label in (("given back", "kept memory"), ("plain", EVERYTHING)):
            pairs = in_turn(lambda w=way: measured(w), lambda: measured("all"), rounds)  # type: ignore[misc]
            most = [statistics.median(memory[w]) for w in (way, "all")]
            told = f"{most[0]:,.0f} and {most[1]:,.0f} MB at most"
            yield f"Steps, {name}: {label} ({told})", pairs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", help="folder of an HGNetV2, also for configs/coco_small.yaml")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.one is not None:
            one_way(args.one, args.plain, args.steps, folder)
            return
        keep_freed_memory()
        commands = cases(folder, args.backbone)
        large = [name for name in commands if name.startswith("ConvNeXt")]
        live = {name: text for name, text in commands.items() if name not in large}
        of_step = {name: commands[name] for name in [next(iter(commands)), *large]}
        parts = {
            "Backbone": lambda: backbone_rows(args.backbone, args.rounds),
            "AdamW": lambda: optimizer_rows(of_step, folder, args.rounds),
            "Steps": lambda: step_rows(live, folder, args.rounds, args.steps),
        }
        print(f"torch {torch.__version__}, medians of {args.rounds} rounds (lowest to highest)\n")
        print("| What | Without, ms | With, ms | Ratio |\n|---|---|---|---|")
        for part, rows in parts.items():
            if part.startswith(tuple(args.only)):
                for name, pairs in rows():
                    print(f"| {name} | {' | '.join(cells(pairs))} |", flush=True)


def cells(pairs: list[Pair]) -> list[str]:
    """Both columns and the ratio of a round's two, each as median (lowest to highest)."""
    columns = [[1000 * a for a, _ in pairs], [1000 * b for _, b in pairs]]
    ratios = [a / b for a, b in pairs]
    shown = [f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns]
    return [*shown, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]


if __name__ == "__main__":
    main()
