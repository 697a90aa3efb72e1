"""Evaluate an exported detector on a validation split.

`python -m tools.evaluate --model runs/demo/export --config runs/demo/config.yaml`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line
from settings.keys import Config
from settings.load import load_config


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="exported folder or Hub id")
    parser.add_argument("--out", type=Path, help="folder for metrics.json, tables and drawings")
    args, rest = parser.parse_known_args(argv)
    refuse_unwritable("--out", args.out, folder=True)
    return args, load_config(rest, prog=parser.prog, world=1)  # nothing is trained on this world


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import json
import time
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from data.build import build_data, with_tiles
from data.feed.loader import eval_loader
from devices import compute_in_fp32, pins
from evaluation.metrics import measure
from evaluation.mistakes import analyse
from evaluation.predictions import flat_threshold, predict_split
from evaluation.windows import on_images
from export.detector import load_detector
from model.memory import MemoryWatch
from report.evaluation import metric_lines, refuse_foreign, write_report
from run.together import ending_together


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Evaluate what a command line asks for; see `evaluate`."""
    return evaluate(*arguments(argv))


def evaluate(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Evaluate and print; the metrics.

    Raises:
        UserError: if model and dataset do not have the same classes.
    """
    if args.out:
        refuse_foreign(args.out)  # before the work
    wanted = None if cfg.model.task == "detection" else cfg.model.task
    detector = load_detector(args.model, wanted)
    data_cfg = replace(cfg.data, image_size=detector.rule.size, augment=[])
    compute_in_fp32()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    with ending_together(accelerator):
        data = build_data(data_cfg, cfg.run.seed, labels=detector.labels)
        data = with_tiles(data, data_cfg.tiles)
    if list(data.taxonomy.names) != detector.names:
        raise UserError(
            f"the model's classes {detector.names} are not the dataset's {list(data.taxonomy.names)}"
        )
    total = len(data.val_windows or data.val)
    quiet = None if accelerator.is_main_process else True
    bar = tqdm(total=total, unit=" images", desc="evaluating", disable=quiet, leave=False)
    start = time.perf_counter()
    predictions = predict_split(
        accelerator,
        detector.trainable.to(accelerator.device),
        eval_loader(
            data.val_windows or data.val,
            detector.rule,
            cfg.eval.batch_size,
            cfg.data.num_workers,
            pins(accelerator.device),
            accelerator.process_index,
            accelerator.num_processes,
        ),
        len(data.val_windows or data.val),
        cfg.eval.max_detections,
        flat_threshold(data.labels, cfg.eval),
        MemoryWatch(accelerator.device, "eval.batch_size"),
        shown=lambda num: bar.update(min(num * accelerator.num_processes, total - bar.n)),
    )
    bar.close()
    assert predictions is not None, "nothing stops it"
    if data.val_tiles is not None:
        predictions = on_images(predictions, data.val_tiles, cfg.eval.max_detections)
    metrics = measure(data.labels, data.val, predictions, data.taxonomy, accelerator)
    analysis = analyse(data.labels, data.val, predictions, data.taxonomy, accelerator)
    metrics |= analysis.totals()
    metrics["seconds"] = round(time.perf_counter() - start, 2)
    if accelerator.is_main_process:
        print(f"{len(data.val)} validation images, {metrics['seconds']} s")
        print("\n".join(metric_lines(metrics)))
        if args.out:
            write_report(args.out, metrics, predictions, data, cfg.eval, analysis)
            print(f"written to {args.out}")
        else:
            print(json.dumps({k: v for k, v in metrics.items() if k != "per_class"}))
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    with ending_with_one_line():
        evaluate(*GIVEN)
