"""From a command line to a checked configuration.

Defaults < YAML (`--config`, of several the later ones) < command line (`--section.key value`), in whatever
order they stand there. Everything that can be wrong about a configuration is found here, before a process
group, a model or a download exists.
"""

import dataclasses
import functools
import itertools
import os
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from disk import ROOT
from errors import UserError, nearest
from settings.checks import check_config
from settings.keys import Config
from settings.plain_yaml import load_plain
from settings.tasks import METRICS
from settings.walk import leaf_keys
from settings.wrong_types import in_short

USUAL_NAMES = {
    **dict.fromkeys(("learning_rate", "lr0", "base_lr"), "optim.lr"),
    **dict.fromkeys(("batch", "batch_size", "batch_size_per_gpu"), "train.global_batch_size"),
    **dict.fromkeys(
        ("imgsz", "img_size", "image_size_px", "resolution"), "data.image_size.longest"
    ),
    **dict.fromkeys(("max_steps", "iterations", "num_steps"), "train.steps"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "max_epochs"), "train.epochs"),
    **dict.fromkeys(("output", "out", "out_dir", "save_dir", "project_dir"), "run.output_dir"),
    **dict.fromkeys(("warmup", "warmup_ratio", "warmup_epochs"), "optim.warmup_steps"),
    **dict.fromkeys(("workers",), "data.num_workers"),
    **dict.fromkeys(("dataset", "data_dir", "root"), "data.path"),
}
"""What other trainers call our keys"""
SIZE = "data.image_size"
DESCRIPTION = """Trains a detector or a segmenter on a pretrained backbone. Without --config it runs the embedded default,
configs/synthetic.yaml. The ten keys that most runs set:

  --data.path FOLDER             the labelled images (python -m tools.start FOLDER writes a config for them)
  --data.source KIND             coco, yolo, voc, imagefolder, hub, label_maps
  --run.output_dir FOLDER        where everything of the run is written
  --run.resume auto              go on from the newest checkpoint there
  --model.backbone NAME          Hub id or folder of a pretrained backbone
  --model.init_from NAME         or a whole pretrained detector, with --model.backbone null
  --data.image_size.longest PX   larger finds smaller objects, and takes longer
  --train.steps N                or --train.epochs N
  --train.global_batch_size N    images a step
  --optim.lr RATE                of the head

All keys:
"""
EMBEDDED_DEFAULT = ROOT / "configs" / "synthetic.yaml"

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class HelpFormatter(DefaultHelpFormatter):
    """Leaves the lines of the description as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text


def load_config(
    argv: Sequence[str], prog: str = "train_accelerate.py", world: int | None = None
) -> Config:
    """Read and check the configuration of a command line.

    Args:
        world: processes that the batch has to be divisible by; default: those of the launcher.

    Raises:
        UserError: naming every unknown key, wrong type or contradiction.
    """
    parser = build_parser(prog)
    argv = side_alone(argv)
    if not any(arg == "--config" or arg.startswith("--config=") for arg in argv):
        argv = ["--config", str(EMBEDDED_DEFAULT), *argv]
    unknown = list(unknown_keys(argv))
    if unknown:
        raise UserError("\n  ".join(["unknown configuration keys:", *unknown]))
    try:
        parsed = parser.instantiate(parser.parse_args(files_first(argv)))
    except Exception as error:  # jsonargparse raises ArgumentError, but also TypeError and others
        text = " ".join(str(error).split())
        raise UserError(in_short(text) or text) from error
    sections = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(Config)}
    folder = os.path.expanduser(sections["run"].output_dir)
    sections["run"] = dataclasses.replace(sections["run"], output_dir=folder)
    metric = sections["eval"].metric or METRICS[sections["model"].task][0]
    sections["eval"] = dataclasses.replace(sections["eval"], metric=metric)
    cfg = Config(**sections)
    check_length(argv, cfg)
    check_place(argv, cfg)
    check_config(cfg, world)
    return cfg


def check_length(argv: Sequence[str], cfg: Config) -> None:
    """
    Raises:
        UserError: if the command line gives epochs and a file steps, or the other way round.
    """
    given = {arg.partition("=")[0] for arg in argv}
    for key, other in (("train.epochs", "train.steps"), ("train.steps", "train.epochs")):
        value, left = (getattr(cfg.train, name.removeprefix("train.")) for name in (key, other))
        if f"--{key}" in given and f"--{other}" not in given and None not in (value, left):
            raise UserError(
                f"--{key} {value:g}: a file of --config has {other} {left:g}; give --{other} null as well, or "
                f"--{other} in place of --{key}"
            )


def check_place(argv: Sequence[str], cfg: Config) -> None:
    """
    Raises:
        UserError: if data.path was given without data.source and is not there: it may be a mistyped folder of photos,
            and data.source synthetic, which stands before it, would write its scenes there and train on them.
    """
    path = cfg.data.path
    if cfg.data.source != "synthetic" or not path or os.path.exists(os.path.expanduser(path)):
        return
    for keys in reversed(list(_layers(argv))):
        if "data.source" in keys:
            return
        if "data.path" in keys:
            raise UserError(
                f"data.path {path}: no such folder. For labelled images, name the folder that holds them (`python -m "
                "tools.start FOLDER` writes a configuration for them), or say what they are, for instance --data.source "
                "coco or hub; for synthetic scenes, which are written there, add --data.source synthetic"
            )


def _layers(argv: Sequence[str]) -> Iterator[set[str]]:
    """Keys by where they are given: of each file, then of the command line, which wins."""
    own = set()
    for position, arg in enumerate(argv):
        name, _, value = arg.partition("=")
        if name == "--config":
            file = Path(value or argv[position + 1])
            yield set(_flatten(load_plain(file) or {}, dict(leaf_keys())))
        elif name.startswith("--"):
            own.add(name[2:])
    yield own


@functools.cache
def build_parser(prog: str) -> ArgumentParser:
    """The command line, made from the dataclasses above."""
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        usage="%(prog)s [--config FILE]... [--section.key VALUE]...",
        description=DESCRIPTION,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    for section in dataclasses.fields(Config):
        kind: Any = section.type
        parser.add_argument(f"--{section.name}", type=kind, default=kind())
    return parser


def side_alone(argv: Sequence[str]) -> list[str]:
    """The command line, in which `--data.image_size 640` is the longest side."""
    argv = list(argv)
    for place, arg in enumerate(argv):
        name, equals, value = arg.partition("=")
        if name != f"--{SIZE}":
            continue
        following = value if equals else "".join(argv[place + 1 : place + 2])
        if following.isdecimal():
            argv[place] = f"{name}.longest{equals}{value}"
    return argv


def files_first(argv: Sequence[str]) -> list[str]:
    """The command line with its `--config` files before everything else; the parser lets the last one win."""
    files: list[str] = []
    others: list[str] = []
    arguments = iter(argv)
    for arg in arguments:
        if arg == "--config":
            files += [arg, *itertools.islice(arguments, 1)]
        else:
            (files if arg.startswith("--config=") else others).append(arg)
    return files + others


def unknown_keys(argv: Sequence[str]) -> Iterator[str]:
    """One message for each key of the YAML files and the command line that does not exist."""
    known = dict(leaf_keys())
    for position, arg in enumerate(argv):
        name, _, value = arg.partition("=")
        if name == "--config":
            yield from _unknown_in_yaml(value or "".join(argv[position + 1 : position + 2]), known)
        elif name.startswith("--") and name not in ("--print_config", "--help"):
            key = name[2:].removesuffix("+")
            if not _is_known(key, known):
                yield f"{name}{_nearest(key, known)}"


def _unknown_in_yaml(path: str, known: dict[str, Any]) -> Iterator[str]:
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file")
    try:
        content = load_plain(Path(path))
    except ValueError as error:
        raise UserError(f"--config {path}: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"--config {path}: expected sections such as 'run:' and 'data:'")
    sections = {key.partition(".")[0] for key in known}
    sized = (content or {}).get("data")
    side = sized.get("image_size") if isinstance(sized, dict) else None
    if isinstance(side, int | str):
        raise UserError(f"--config {path}: {SIZE} {side}: write image_size: {{longest: {side}}}")
    for name, section in (content or {}).items():
        if name in sections and not isinstance(section, dict):
            raise UserError(f"--config {path}: section {name!r} must hold keys, not {section!r}")
    for key in _flatten(content or {}, known):
        if not _is_known(key, known):
            yield f"{path}: {key}{_nearest(key, known)}"


def _flatten(values: dict[Any, Any], known: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in known:
            yield from _flatten(value, known, f"{name}.")
        else:
            yield name


def _is_known(name: str, known: dict[str, Any]) -> bool:
    sections = {key.rpartition(".")[0] for key in known}
    parent = name
    while parent:
        if parent in known:
            return parent == name or typing.get_origin(known[parent]) is dict
        parent = parent.rpartition(".")[0]
    return name in sections


def _nearest(name: str, known: dict[str, Any]) -> str:
    """' - did you mean ...?' for a misspelt key, or a key of another section."""
    if (last := name.rpartition(".")[2]) in USUAL_NAMES:
        return f" - did you mean {USUAL_NAMES[last]}?"
    by_last = {key.rpartition(".")[2]: key for key in known}
    match = nearest(name, known, 0.7) or by_last.get(nearest(last, by_last, 0.7))
    return f" - did you mean {match}?" if match else " - see --help for the keys"
