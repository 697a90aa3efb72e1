"""Put a checked dataset into a few large files, for clusters on which a million small ones are slow.

`python -m tools.pack --config configs/X.yaml --data.path my_data --out packed`

then train with the same arguments and `--data.packed packed`: the same images, order and weights, without a look at
the files that it was made of. A call that was interrupted is made again and goes on. `--share K/N` makes the K-th of N
parts, for N jobs; whichever is last completes the folder.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
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
        prog="python -m tools.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config and --section.key value are those of train_accelerate.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, new or of an earlier call")
    parser.add_argument(
        "--share", type=share, default=(1, 1), metavar="K/N", help="the K-th of N parts alone"
    )
    parser.add_argument(
        "--shard-images",
        type=int,
        default=2048,
        metavar="N",
        help="images of a file (default: 2048)",
    )
    args, rest = parser.parse_known_args(argv)
    if args.shard_images < 1:
        raise UserError(f"--shard-images {args.shard_images}: give a number of images")
    cfg = load_config(rest, prog=parser.prog, world=1)  # nothing is trained on this world
    if ":/" in str(args.out):  # Path makes one stroke of two
        raise UserError(
            f"--out {args.out}: is written to a folder here, which is then copied to the store"
        )
    args.out = Path(os.path.expanduser(args.out))
    refuse_unwritable("--out", args.out, folder=True)
    if cfg.data.packed is not None:
        raise UserError("data.packed: this dataset is packed already; leave the key out")
    return args, cfg


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

from tqdm import tqdm

from data.build import build_data
from data.packed import Pack
from model.start import completed
from settings.tasks import LABELS


def main(argv: Sequence[str]) -> None:
    """Pack what a command line asks for; see `pack`."""
    pack(*arguments(argv))


def pack(args: argparse.Namespace, cfg: Config) -> None:
    """Write a dataset's shards, and what completes them if none is missing.

    Raises:
        UserError: for anything wrong with the dataset, or if the folder cannot be written.
    """
    try:
        args.out.mkdir(parents=True, exist_ok=True)  # before the work
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be made: {error.strerror}") from error
    cfg = completed(cfg)
    data = build_data(cfg.data, cfg.run.seed, cfg.run.max_bad_images, LABELS[cfg.model.task])
    made = Pack(args.out, data, args.shard_images)
    number, jobs = args.share
    try:
        made.begin(cfg.data, cfg.run.seed)
        own = [shard for shard in made.missing() if shard % jobs == number - 1]
        with tqdm(desc="pack", unit=" images", disable=None) as bar:
            for shard in own:
                made.write(shard, bar.update)
        if not (rest := made.missing()):
            made.finish()
    except OSError as error:
        raise UserError(
            f"--out {args.out}: cannot be written: {error}. What is there stays; call again when it can"
        ) from error
    whole = f"{made.num_images} images in {made.num_shards} shard(s) in {args.out}"
    if rest:
        print(f"packed      {len(own)} shard(s); {len(rest)} of {made.num_shards} are missing")
    else:
        print(f"packed      {whole}; train with the same arguments and --data.packed {args.out}")


if __name__ == "__main__":
    with ending_with_one_line():
        pack(*GIVEN)
