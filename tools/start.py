"""From a folder of labelled images to a configuration that trains on it.

`python -m tools.start my_data` looks at the folder, says what it found, writes a commented configuration and prints the
command that runs it. Nothing is downloaded but a backbone's files, and nothing is trained but the few steps by
which the time of one is measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line
from tools.given_folder import folder_of

MOST_MINUTES = 60 * 24 * 7


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="folder with the labelled images, or its data.yaml"
    )
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="time budget of the training (15)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: NAME_OF_THE_FOLDER.yaml")
    parser.add_argument(
        "--task",
        choices=["detection", "instance_segmentation", "semantic_segmentation"],
        help="default: what the labels allow, masks before boxes",
    )
    parser.add_argument(
        "--allow-unlabelled",
        action="store_true",
        help="images without a label file (YOLO) show nothing, although they are many",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--backbone", help="Hub id or folder; default: an open one that can be had"
    )
    weights.add_argument(
        "--detector", help="Hub id or folder of a whole pretrained detector to start from"
    )
    args = parser.parse_args(argv)
    if not 0.5 <= args.minutes <= MOST_MINUTES:
        raise UserError(f"--minutes {args.minutes:g}: must lie in 0.5 ... {MOST_MINUTES}")
    args.data = folder_of(args.data)
    name = args.data.expanduser().resolve().name or "data"
    args.out = args.out or Path(f"{name}.yaml")
    if args.out.exists():
        raise UserError(f"--out {args.out}: is there already; name another file")
    refuse_unwritable("--out", args.out)
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import dataclasses
import math
import shlex
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from data.dataset import Data
from data.sources.recognise import recognise
from model.heads.registry import get_family
from model.start import completed
from settings.checks import check_config
from settings.keys import Config, DataConfig
from settings.tasks import METRICS, Task
from settings.written import commented_yaml, write_new
from tools.start_backbones import BACKBONES, DETECTORS, EMBEDDED, obtainable
from tools.start_data import read_for
from tools.start_recipe import SMALLEST_PX, SOME_TIMES, Recipe, Start, choose, why_embedded
from tools.start_text import Chosen, chosen, found
from tools.start_timing import Pace, Plan, measure, plan

LEAST_STEPS = 100
"""Of a pretrained detector, below which something quicker is taken"""


def main(argv: Sequence[str]) -> int:
    """Write the configuration that a command line asks for; the exit status."""
    return start(arguments(argv))


def start(args: argparse.Namespace) -> int:
    """Look, choose, measure, write, and say what to run.

    Raises:
        UserError: if there is nothing that can be trained on.
    """
    transformers_logging.disable_progress_bar()
    root = args.data.expanduser()
    seen = recognise(root)
    if args.allow_unlabelled:
        seen = dataclasses.replace(seen, keys={**seen.keys, "allow_unlabelled": True})
    task, cfg, data = read_for(root, seen, args.task)
    for line in found(root, seen, task, data):
        print(line)
    gpu = torch.accelerator.is_available()
    choice = _planned(args, cfg, data, task, gpu)
    recipe = choice.recipe
    _length(choice, data)
    out = args.out
    recipe.set("run.output_dir", f"runs/{out.stem}")
    recipe.set("run.log_every", 20)
    values = {**_own_keys(cfg.data), **recipe.values}
    title = (
        f"{root}: {len(data.train):,} training and {len(data.val):,} validation images, {task.replace('_', ' ')}; written by "
        f"tools.start for about {args.minutes:g} minutes on this machine. Every value can be changed here or on the "
        f"command line.\n    python train_accelerate.py --config {shlex.quote(str(out))}"
    )
    write_new(out, commented_yaml(_ordered(values), recipe.comments, title), "--out")
    print("\n".join(chosen(choice, data)))
    print(
        f"\nwritten to {out}; now run\n\n    python train_accelerate.py --config {shlex.quote(str(out))}\n"
    )
    return 0


def _planned(args: argparse.Namespace, cfg: Config, data: Data, task: Task, gpu: bool) -> Chosen:
    """The recipe of the first start that gives enough steps, measured."""

    def planning(pace: Pace, made: Config) -> Plan:
        batch = made.train.global_batch_size
        return plan(pace, args.minutes, len(data.train), len(data.val), batch)

    starts = _starts(args, task)
    for number, begun in enumerate(starts):
        recipe = choose(data, task, begun, gpu)
        made = completed(_made(cfg, recipe))
        print(f"\nmeasuring a few steps of {begun.detector or begun.backbone} ...", flush=True)
        pace = measure(made, data)
        planned = planning(pace.alone, made)
        wanted, at_wanted = made.data.image_size.longest_px, pace.wall
        if begun.detector is None and (size := _cheaper(made, planned.steps)) is not None:
            print(
                f"  {planned.steps} steps of images of {wanted} px are few: {size} px are tried",
                flush=True,
            )
            why = f"objects would have {wanted}, of which {args.minutes:g} minutes give {planned.steps} steps only"
            recipe.set("data.image_size.longest", size, why)
            made = _made(cfg, recipe)
            pace = measure(made, data)
            planned = planning(pace.alone, made)
        enough = planned.steps >= LEAST_STEPS or begun.detector is None
        if enough or number == len(starts) - 1:
            if pace.busy:
                print(
                    f"  this machine is busy: a step takes {pace.wall.step_s:.2f} s, and {pace.alone.step_s:.2f} s of "
                    "computing; minutes are planned by the former, all else is chosen by the latter"
                )
            final = planning(pace.wall, made)
            return Chosen(made, recipe, final, pace.wall, args.minutes, wanted, at_wanted)
        print(
            f"  {planned.steps} steps in {args.minutes:g} minutes are too few for it; something smaller is taken"
        )
    raise AssertionError("there is always a start")


def _cheaper(cfg: Config, steps: int) -> int | None:
    """A side of images, px, of which about enough steps fit; None if they do already, or images are small."""
    wanted = SOME_TIMES * get_family(str(cfg.model.head)).few_steps
    given = cfg.data.image_size.longest_px
    if steps >= wanted or given <= SMALLEST_PX:
        return None
    size = int(given * math.sqrt(max(steps, 1) / wanted)) // 32 * 32
    return max(SMALLEST_PX, min(size, given - 32))


def _starts(args: argparse.Namespace, task: Task) -> list[Start]:
    """Where weights may come from, best first."""
    if args.backbone is not None:
        why = why_embedded(asked=True) if args.backbone == EMBEDDED else "as asked for"
        return [Start(args.backbone, None, why)]
    if args.detector is not None:
        return [Start(None, args.detector, "as asked for")]
    starts = []
    detector = obtainable(DETECTORS) if task == "detection" else None
    if detector is not None:
        starts.append(Start(None, detector.name, str(detector)))
    backbone = obtainable(BACKBONES)
    if backbone is not None:
        starts.append(Start(backbone.name, None, str(backbone)))
    else:
        starts.append(Start(EMBEDDED, None, why_embedded(asked=False)))
    return starts


def _made(cfg: Config, recipe: Recipe) -> Config:
    """The configuration of a recipe, checked."""
    plain: dict[str, dict[str, Any]] = {}
    size = dataclasses.replace(
        cfg.data.image_size, longest=recipe.values["data.image_size.longest"]
    )
    for key, value in recipe.values.items():
        section, _, name = key.partition(".")
        if not name.startswith("image_size"):
            plain.setdefault(section, {})[name] = value
    plain.setdefault("train", {})["steps"] = 1
    plain["data"]["image_size"] = size
    changed = {
        name: dataclasses.replace(getattr(cfg, name), **values) for name, values in plain.items()
    }
    metric = dataclasses.replace(cfg.eval, metric=METRICS[cfg.model.task][0])
    made = dataclasses.replace(cfg, eval=metric, **changed)
    check_config(made, 1)
    return made


def _length(choice: Chosen, data: Data) -> None:
    recipe, planned, pace = choice.recipe, choice.plan, choice.pace
    epochs = planned.steps * choice.cfg.train.global_batch_size / len(data.train)
    recipe.set(
        "train.steps",
        planned.steps,
        f"{epochs:.0f} passes over the training images; a step took {pace.step_s:.2f} s here, so about "
        f"{planned.seconds / 60:.0f} of {choice.minutes:g} minutes with everything",
    )
    recipe.set("optim.warmup_steps", max(1, min(200, planned.steps // 10)))
    recipe.set("train.evaluate_every", max(1, -(-planned.steps // planned.evaluations)))
    recipe.set("data.num_workers", 1 if planned.cache_features else 2)
    if planned.cache_features:
        recipe.set(
            "data.cache_features",
            planned.cache_features,
            f"the backbone's features of {planned.cache_features} views of each image are stored, {pace.backbone_s:.2f} of "
            f"{pace.step_s:.2f} s of a step saved",
        )


def _own_keys(data: DataConfig) -> dict[str, Any]:
    """Keys of the data that say where labels are and what they mean."""
    usual = DataConfig()
    keys = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    keys["path"] = str(Path(str(data.path)).resolve())
    return {f"data.{k}": v for k, v in keys.items() if v != getattr(usual, k) and k != "image_size"}


def _ordered(values: dict[str, Any]) -> dict[str, Any]:
    order = ("run", "data", "model", "optim", "train", "eval")
    return dict(sorted(values.items(), key=lambda item: order.index(item[0].partition(".")[0])))


if __name__ == "__main__":
    with ending_with_one_line():
        sys.exit(start(GIVEN))
