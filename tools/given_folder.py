"""A folder of labelled images where no configuration is given yet: for `tools.start` and `tools.check_data`."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from disk import ROOT
from errors import UserError
from settings.keys import DataConfig

OF_MASKS = ROOT / "configs/synthetic_masks.yaml"
"""A configuration whose task needs masks, of which the task alone is used"""
OF_MODEL = ("--model.", "--train.", "--data.image_size")


def folder_of(given: Path) -> Path:
    """The folder of a dataset, by itself or by its data.yaml.

    Raises:
        UserError: if it is none.
    """
    place = given.expanduser()
    if place.is_dir():
        return given
    if place.is_file() and place.suffix in (".yaml", ".yml") and b"names" in place.read_bytes():
        return given.parent
    raise UserError(f"{given}: {'a file, not a folder' if place.exists() else 'no such folder'}")


def with_folder(argv: Sequence[str]) -> list[str]:
    """A command line with keys in place of a folder that stands on it: what it is, and a task that its labels are for.

    Raises:
        UserError: if it is no folder, or its labels are in no form that is read.
    """
    keys, others = _parted(argv)
    if not others:
        return list(argv)
    named = [key.partition("=")[0] for key in keys]
    if len(others) > 1 or "--data.path" in named:
        raise UserError(f"{', '.join(others)}: name one folder, here or by --data.path")
    from data.sources.recognise import recognise  # which takes a moment, before options are read

    folder = folder_of(Path(others[0]))
    given = [*keys, "--data.path", str(folder)]
    if "--data.source" not in named:
        seen = recognise(folder.expanduser())
        given += ["--data.source", seen.source]
        if (seen.masks or seen.source == "label_maps") and not has_model(argv):
            task = "instance" if seen.masks else "semantic"
            given = ["--config", str(OF_MASKS), *given, "--model.task", f"{task}_segmentation"]
    return given


def has_model(argv: Sequence[str]) -> bool:
    """Whether a command line says anything of what is trained, rather than of the data alone."""
    return any(arg.partition("=")[0] == "--config" or arg.startswith(OF_MODEL) for arg in argv)


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Keys with their values, and what else stands on a command line."""
    keys: list[str] = []
    others: list[str] = []
    rest: Iterator[str] = iter(argv)
    for arg in rest:
        if not arg.startswith("--"):
            others.append(arg)
            continue
        keys.append(arg)
        if "=" not in arg:
            keys += [value for value in [next(rest, None)] if value is not None]
    return keys, others


def check_command(folder: Path, cfg: DataConfig) -> str:
    """What checks a dataset that was recognised by its folder."""
    usual = DataConfig(source=cfg.source, path=cfg.path)
    keys = [field.name for field in dataclasses.fields(cfg)]
    changed = {key: getattr(cfg, key) for key in keys if getattr(cfg, key) != getattr(usual, key)}
    words = [
        word
        for key, value in changed.items()
        for word in (f"--data.{key}", str(value).lower() if isinstance(value, bool) else str(value))
    ]
    return shlex.join(["python", "-m", "tools.check_data", str(folder), *words])
