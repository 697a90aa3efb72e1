"""What the feature cache is worth: steps of a run with stored features against steps with the backbone.

`python -m benchmarks.feature_cache [--backbone FOLDER] [--only embedded ...]`

Whole steps with their data (the loader in this process, decoding and augmenting included), CPU seconds of one
thread. Each round takes some steps of both, in turn.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextConfig
from transformers.utils import logging as transformers_logging

from benchmarks.conditions import conditions
from data.feed.loader import batches_of
from run.build import Run, build_run, start_processes
from settings.load import load_config

TINY_CONVNEXT: dict[str, Any] = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}
"""DINOv3 ConvNeXt-T"""
DETR = {
    **{"num_queries": 100, "encoder_layers": 6, "decoder_layers": 6, "d_model": 256},
    **{"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048},
}
SCENES = "--data.synthetic_train 16 --data.synthetic_val 4 --data.num_workers 0 --run.tracker none"


def cases(folder: Path, backbone: str | None) -> dict[str, str]:
    """Command lines by name."""
    config = DINOv3ConvNextConfig(**TINY_CONVNEXT)
    torch.manual_seed(0)
    DINOv3ConvNextBackbone(config).save_pretrained(folder / "convnext-t")
    head = f"--model.head detr --model.out_features [stage4] --model.head_args {json.dumps(DETR).replace(' ', '')}"
    found = {
        "embedded, configs/synthetic.yaml, batch 16": f"--config configs/synthetic.yaml {SCENES}",
        "ConvNeXt-T (random), DETR, 640 px, batch 4": f"--config configs/synthetic.yaml {SCENES} "
        f"--model.backbone {folder / 'convnext-t'} {head} --data.image_size.longest 640 --train.global_batch_size 4",
    }
    if backbone is not None:
        found[f"{Path(backbone).name}, configs/coco_small.yaml, batch 4"] = (
            f"--config configs/coco_small.yaml {SCENES} --data.source synthetic --data.path null "
            f"--data.val_split null --model.backbone {backbone}"
        )
    return found


def seconds_of(run: Run, steps: int) -> float:
    """CPU seconds of one step, mean of `steps` after the first."""
    trainable = run.detector.trainable
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    loader, _ = run.train_loader()
    start = 0.0
    with batches_of(loader) as batches:
        for step in range(steps + 1):
            if step == 1:
                start = time.process_time()
            batch = next(batches)
            losses = trainable(batch, trainable.counts(batch).alone)
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            run.optimizer.step()
            run.optimizer.zero_grad()
    return (time.process_time() - start) / steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", help="folder of a further one, for configs/coco_small.yaml")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the cases' names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    print(
        f"{conditions()}; medians of {args.rounds} rounds of {args.steps} steps (lowest to highest)\n"
    )
    print("| Case | Backbone at work, s a step | Stored, s a step | Ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, (name, arguments) in enumerate(cases(folder, args.backbone).items()):
            if not name.startswith(tuple(args.only)):
                continue
            more = f"--run.output_dir {folder / str(number)} --run.draw_batches 0 --run.pictures false --data.cache_features 1"
            more += f" --data.cache_folder {folder / 'features'}"
            (folder / str(number)).mkdir()
            cfg = load_config([*arguments.split(), *more.split()])
            with contextlib.redirect_stdout(sys.stderr):  # its own lines would break the table
                stored = build_run(cfg, start_processes(cfg))
            live = dataclasses.replace(stored, features=None)
            live.detector.trainable.train()
            times = [
                (seconds_of(live, args.steps), seconds_of(stored, args.steps))
                for _ in range(args.rounds)
            ]
            cells = []
            for column in zip(*times, strict=True):
                low, high = min(column), max(column)
                cells.append(f"{statistics.median(column):.3f} ({low:.3f} to {high:.3f})")
            ratio = statistics.median(a for a, _ in times) / statistics.median(b for _, b in times)
            print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
