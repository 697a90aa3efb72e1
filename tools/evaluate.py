"""Evaluate an exported detector on a validation split.

`python -m tools.evaluate --model runs/demo/export --config runs/demo/config.yaml`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line, printable
from settings.keys import Config
from settings.load import EMBEDDED_DEFAULT, load_config

KEYS = """The data, and how it is measured, are keys of the configuration as in training, from --config or one by one:

  --data.val_split NAME                    another split of the data of --config
  --data.path FOLDER                       another folder, that is read as that of --config
  --data.source coco --data.path FOLDER    any other labelled images
  --eval.batch_size N                      images at once

`python train_accelerate.py --help` lists all of them."""


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate",
        usage="%(prog)s --model MODEL [--config FILE]... [--out FOLDER] [--section.key VALUE]...",
        description=__doc__,
        epilog=KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="exported folder or Hub id")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="configuration that names the data (default: config.yaml of the run whose export it is, unless "
        "--data.source is given)",
    )
    parser.add_argument("--out", type=Path, help="folder for metrics.json, tables and drawings")
    args, keys = parser.parse_known_args(argv)
    refuse_unwritable("--out", args.out, folder=True)
    args.by_itself = None
    if not args.config and not any(key.startswith("--data.source") for key in keys):
        args.by_itself = config_beside(args.model)
    files = [str(args.by_itself)] if args.by_itself else args.config
    given = [part for file in files for part in ("--config", file)]
    # Nothing is trained on this world.
    return args, load_config([*given, *keys], prog=parser.prog, world=1)


def config_beside(model: str) -> Path | None:
    """config.yaml of the run whose export a folder is."""
    run = Path(model).expanduser().parent
    files = [run / "config.yaml", run / "run.json"]
    is_export = Path(model).name == "export" and all(file.is_file() for file in files)
    return files[0] if is_export else None


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
        raise UserError(other_classes(args, cfg, detector.names, data.taxonomy.names))
    if accelerator.is_main_process:
        print(printable(told_before(args, cfg, len(data.val))), flush=True)
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


def told_before(args: argparse.Namespace, cfg: Config, num_images: int) -> str:
    """The first line: what is evaluated, on what."""
    whose = f", read by {args.by_itself} (--config FILE takes another)" if args.by_itself else ""
    return f"evaluating {args.model} on {num_images} validation image(s) of {_dataset(cfg)}{whose}"


def other_classes(
    args: argparse.Namespace, cfg: Config, names: Sequence[str], others: Sequence[str]
) -> str:
    """What is said where model and dataset do not have the same classes."""
    told = f"the model's classes {list(names)} are not those of {_dataset(cfg)}: {list(others)}"
    if args.config or args.by_itself:
        return f"{told}; name other data, or the classes to read by --data.labels"
    own = config_beside(args.model) or "FILE (config.yaml of the run that trained it)"
    return (
        f"{told}; {EMBEDDED_DEFAULT.name} is taken without --config: give --config {own}, or all keys of the data "
        "(--data.source, --data.path, ...)"
    )


def _dataset(cfg: Config) -> str:
    return (
        f"{cfg.data.path} ({cfg.data.source})"
        if cfg.data.path
        else f"data.source {cfg.data.source}"
    )


if __name__ == "__main__":
    with ending_with_one_line():
        evaluate(*GIVEN)
