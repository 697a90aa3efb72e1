"""Store what a frozen backbone makes of a dataset's images, before the runs that use it.

`accelerate launch -m tools.cache_features --config configs/X.yaml --data.cache_features 4`

Give it the arguments of the runs. Without it the first run stores them. slurm/cache_features.sbatch makes the
shares of many jobs.
"""

import argparse
import dataclasses
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
    args, rest = parser.parse_known_args(argv)
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


def main(argv: Sequence[str]) -> None:
    """Store what a command line asks for; see `store`."""
    store(*arguments(argv))


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
        store(*GIVEN)
