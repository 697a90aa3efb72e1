"""Store what a frozen backbone makes of a dataset's images, before the runs that use it.

`accelerate launch -m tools.cache_features --config configs/X.yaml --data.cache_features 4`

Give it the arguments of the runs. Without it the first run stores them. `--share K/N` makes the K-th of N parts, for N
jobs (slurm/shares.sbatch); `--engine ray`, called without a launcher, makes all of them on a Ray cluster.
"""

import argparse
import copy
import dataclasses
import os
import sys
from collections.abc import Sequence

from errors import UserError, ending_with_one_line
from settings.keys import Config
from settings.load import load_config
from settings.share import share


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.cache_features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config and --section.key value are those of train_accelerate.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--yes", action="store_true", help="also if it takes many GB")
    parser.add_argument(
        "--share",
        type=share,
        default=(1, 1),
        metavar="K/N",
        help="make the K-th of N parts alone; N jobs, at once or one after the other, make all",
    )
    parser.add_argument(
        "--engine",
        choices=("launcher", "ray"),
        default="launcher",
        help="processes of the launcher, or a Ray cluster (pip install -r requirements-ray.txt)",
    )
    args, rest = parser.parse_known_args(argv)
    if args.engine == "ray" and args.share != (1, 1):
        raise UserError("--share: with --engine ray each of its processes makes one; leave it out")
    if args.engine == "ray" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--engine ray: is one process; call it with python, without a launcher")
    cfg = load_config(rest, prog=parser.prog, world=1)  # nothing is trained on this world
    if not cfg.data.cache_features:
        raise UserError("data.cache_features 0: nothing to store; give the number of views")
    return args, cfg


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

from transformers.utils import logging as transformers_logging

from run.build import build_parts, start_processes
from run.feature_cache import prepare_features
from run.on_ray import on_ray, started


def main(argv: Sequence[str]) -> None:
    """Store what a command line asks for; see `made`."""
    made(*arguments(argv))


def made(args: argparse.Namespace, cfg: Config) -> None:
    """Collective: called on every rank. Store features here or on a cluster.

    Raises:
        UserError: as `store`.
    """
    if args.engine == "ray":
        _store_on_ray(args, cfg)
    store(args, cfg)  # what is missing still, and a comparison


def _store_on_ray(args: argparse.Namespace, cfg: Config) -> None:
    """A share for each GPU of a cluster, or for each CPU if it has none."""
    slots = started().cluster_resources()
    gpus = int(slots.get("GPU", 0))
    jobs = gpus or max(1, int(slots.get("CPU", 1)))
    shares = []
    for number in range(1, jobs + 1):
        own = copy.copy(args)
        own.share = number, jobs
        shares.append((f"share {number} of {jobs}", (own, cfg)))
    for name, _ in on_ray(_store_share, shares, min(1, gpus), alone=True):
        print(f"features    {name} is done", flush=True)


def _store_share(given: tuple[argparse.Namespace, Config]) -> None:
    from tools.cache_features import store  # in a process that has not been called by this name

    store(*given)


def store(args: argparse.Namespace, cfg: Config) -> None:
    """Collective: called on every rank. Store the features of a configuration's images.

    Raises:
        UserError: for anything wrong with data or backbone, or where there is no room.
    """
    tracker = dataclasses.replace(cfg.run, tracker="none")
    accelerator = start_processes(dataclasses.replace(cfg, run=tracker))
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    cfg, data, detector = build_parts(cfg, accelerator)
    features = prepare_features(cfg, accelerator, data, detector, args.yes, args.share)
    if accelerator.is_main_process:
        number, jobs = args.share
        print(f"features    {features}{f' (share {number} of {jobs})' if jobs > 1 else ''}")
    accelerator.end_training()


if __name__ == "__main__":
    with ending_with_one_line():
        made(*GIVEN)
