"""Write a backbone of the same architecture with random weights: the control of an experiment.

`python -m tools.random_backbone --backbone street/backbone --out runs/random_backbone`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line, refusing


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for a folder that cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.random_backbone", description=__doc__)
    parser.add_argument("--backbone", required=True, help="folder or Hub id")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    refuse_unwritable("--out", args.out, folder=True)
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import shutil
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from model.source import local_folder


def main(argv: Sequence[str]) -> None:
    """Write what a command line asks for; see `write`."""
    write(arguments(argv))


def write(args: argparse.Namespace) -> None:
    """Write `--out` with the configs of `--backbone` and fresh weights of `--seed`.

    Raises:
        UserError: if `--out` exists, or there is no such backbone.
    """
    if args.out.exists():
        raise UserError(f"--out {args.out}: exists already")
    folder = local_folder(args.backbone, None, "--backbone")
    with refusing(f"--backbone {args.backbone}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise ValueError(f"transformers has no backbone class for {type(config).__name__}")
        kind: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        torch.manual_seed(args.seed)
        model = kind(config)
    with refusing(f"--out {args.out}"):
        model.save_pretrained(args.out)
    settings = folder / "preprocessor_config.json"
    if settings.is_file():
        shutil.copy(settings, args.out)
    print(f"{args.out}: {type(config).__name__} with random weights, seed {args.seed}")


if __name__ == "__main__":
    with ending_with_one_line():
        write(GIVEN)
