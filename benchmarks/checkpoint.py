"""Size of a checkpoint and the time training waits for it, at the size of the published recipe.

`python -m benchmarks.checkpoint`: DETR on a frozen DINOv3 ConvNeXt-L, both with random weights. A
step is a whole training step on one small image. Saves in the background and saves that are waited
for take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextConfig

from benchmarks.conditions import conditions
from data.batch import Sample
from data.feed.collate import collate
from data.objects import Objects
from data.taxonomy import Taxonomy
from model.build import Detector, build_model
from settings.keys import Config, ModelConfig, OptimConfig
from training.checkpoint import Checkpoints
from training.optim import build_optimizer
from training.state import TrainState, checkpoint_tensors

STEPS = 6
"""Training steps after each save, longer than it takes to write"""
IMAGE = np.full((128, 128, 3), 200, np.uint8)
BOX = Objects(np.array([[50.0, 50, 25, 25]]), np.zeros(1, np.int64))
LARGE: dict[str, Any] = {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]}


def recipe_detector(folder: Path) -> Detector:
    """DETR with transformers' defaults on a ConvNeXt-L written to `folder`."""
    DINOv3ConvNextBackbone(DINOv3ConvNextConfig(**LARGE)).save_pretrained(folder)
    return build_model(ModelConfig(backbone=str(folder), head="detr"), Taxonomy(("plate",), (0,)))


def train_step(
    detector: Detector, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints
) -> float:
    """One step on one image with one box; seconds for which it waited for a copy."""
    batch = collate([Sample(IMAGE, BOX, 0, 0, IMAGE.shape[:2], IMAGE.shape[:2])])
    trainable = detector.trainable
    trainable(batch, trainable.counts(batch).alone).total.backward()
    start = time.perf_counter()
    checkpoints.wait_for_copy()
    waited = time.perf_counter() - start
    optimizer.step()
    optimizer.zero_grad()
    return waited


def main() -> None:
    """Print sizes and times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{conditions()}; medians of {rounds} rounds (lowest to highest)\n")
    print("| File | Bytes |\n|---|---|")
    with tempfile.TemporaryDirectory() as name:
        detector = recipe_detector(Path(name) / "backbone")
        optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig())
        checkpoints = Checkpoints(Path(name) / "checkpoints", keep=1)
        rng = {"cpu/0": torch.get_rng_state()}
        waits: dict[str, list[float]] = {"waited for": [], "in the background": []}
        windows: dict[str, list[float]] = {"no save": [], **{kind: [] for kind in waits}}
        train_step(detector, optimizer, checkpoints)
        state = TrainState()
        for number in range(rounds + 1):  # the first round allocates, and does not count
            for kind, window in windows.items():
                state.step += 1
                start = time.perf_counter()
                waited = 0.0
                if kind != "no save":
                    tensors = checkpoint_tensors(detector.model, optimizer, {}, rng)
                    checkpoints.save(tensors, state, Config(), wait=kind == "waited for")
                    waited = time.perf_counter() - start
                for _ in range(STEPS):
                    waited += train_step(detector, optimizer, checkpoints)
                if number and kind in waits:
                    waits[kind].append(waited)
                if number:
                    window.append(time.perf_counter() - start)
                checkpoints.wait()
        assert checkpoints.failure is None, checkpoints.failure
        newest = checkpoints.folder / checkpoints.names()[0]
        for file in sorted(path for path in newest.rglob("*") if path.is_file()):
            print(f"| {file.relative_to(newest).as_posix()} | {file.stat().st_size:,} |")
        total = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    print(f"| together | {total:,} |")
    print(f"\n| Save | Training waits, ms | With the next {STEPS} steps, ms more |\n|---|---|---|")
    plain = statistics.median(windows["no save"])
    for kind, times in waits.items():
        added = statistics.median(windows[kind]) - plain
        print(
            f"| {kind} | {1000 * statistics.median(times):.0f} ({1000 * min(times):.0f} to {1000 * max(times):.0f}) "
            f"| {1000 * added:.0f} (without a save {1000 * plain:.0f}) |"
        )
    ratio = statistics.median(waits["in the background"]) / statistics.median(waits["waited for"])
    print(f"\nRatio of the waits: {100 * ratio:.1f} %")


if __name__ == "__main__":
    main()
