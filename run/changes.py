"""What is not as it was in the checkpoint a run goes on from: keys, packages, processes."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import UserError
from settings.keys import AUTO, Config
from settings.label_checks import VALIDATION
from settings.walk import config_to_dict, harmless_keys, leaf_keys

KEYS = {name for name, _ in leaf_keys()}


def changed_keys(before: Mapping[str, Any], cfg: Config) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each key that differs; a key that is new had its default before."""
    default, now = flat(config_to_dict(Config())), flat(config_to_dict(cfg))
    old = {**default, **{k: v for k, v in flat(before).items() if k in now}}
    for values in (old, now):  # the default's former name
        values["data.box_format"] = (
            None if values["data.box_format"] == "coco" else values["data.box_format"]
        )
    place = "data.val_split"  # that lies beside, by its name or found again: fingerprints tell whether it is the same
    names = (old[place], now[place])  # a checkpoint's may be of any type
    if None in names and any(name in VALIDATION for name in names):
        now[place] = old[place]
    return {key: (old[key], value) for key, value in now.items() if old[key] != value}


def check_changes(before: Mapping[str, Any], cfg: Config, folder: Path) -> list[str]:
    """One line per key that is not what it was in the checkpoint `folder`.

    Raises:
        UserError: if one of them changes the training, unless run.allow_changes.
    """
    changes = changed_keys(before, cfg)
    harmless = set(harmless_keys())
    if cfg.optim.schedule == "constant":
        harmless |= {"train.steps", "train.epochs"}
    lines = {key: f"{key}: {old} -> {new}" for key, (old, new) in changes.items()}
    deciding = [line for key, line in lines.items() if key not in harmless]
    if deciding and not cfg.run.allow_changes:
        raise UserError(
            "\n  ".join(
                [
                    f"{folder}: these keys were different, and they change the training:",
                    *deciding,
                    "put them back, or go on with the new values by --run.allow_changes true",
                ]
            )
        )
    quiet = ("run.output_dir", "run.resume", "run.allow_changes")
    return [
        f"changed since the checkpoint: {line}{'' if key in harmless else ' (allowed)'}"
        for key, line in lines.items()
        if key not in quiet
    ]


def note_world(
    before: Mapping[str, Any],
    cfg: Config,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    head: Mapping[str, Any],
) -> Iterator[str]:
    """Lines on what else is not as it was: packages, number of processes, dropout.

    Args:
        before: configuration of the checkpoint; old and new: facts of the checkpoint and of now.
        head: configuration of the detector.
    """
    versions = {
        name: (version, new["versions"].get(name))
        for name, version in old["versions"].items()
        if version != new["versions"].get(name)
    }
    if versions:
        listed = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in versions.items())
        yield f"other packages than before ({listed}): losses can differ in their last digits"
    if old.get("threads", new["threads"]) != new["threads"]:
        yield (
            f"{old['threads']} -> {new['threads']} threads (OMP_NUM_THREADS): sums are in another order, "
            "and losses can differ in their last digits"
        )
    if old["world_size"] != new["world_size"]:
        yield (
            f"{old['world_size']} -> {new['world_size']} processes: same images and gradients, up to "
            "the order of floating-point sums"
        )
    sizes = [
        values["train"]["micro_batch_size"]
        or max(1, values["train"]["global_batch_size"] // facts["world_size"])
        for values, facts in ((before, old), (config_to_dict(cfg), new))
    ]
    if AUTO in sizes:  # as many as before, or told when it is known
        return
    dropout = any(v for k, v in head.items() if "dropout" in k and isinstance(v, int | float))
    if dropout and sizes[0] != sizes[1]:
        yield (
            f"not exact: dropout masks belong to a micro-batch, and it has {sizes[1]} images instead "
            f"of {sizes[0]}; train.micro_batch_size {sizes[0]} keeps them, where it fits"
        )


def with_fitting_warmup(cfg: Config, num_steps: int) -> tuple[Config, list[str]]:
    """The configuration with a warm-up that ends within the run, and what is said of it."""
    given, fitting = cfg.optim.warmup_steps, max(1, num_steps // 10)
    if given < num_steps or given <= fitting:
        return cfg, []
    note = f"note: optim.warmup_steps {given} would not end within {num_steps} steps; {fitting} are taken, a tenth of them"
    return dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, warmup_steps=fitting)), [
        note
    ]


def with_micro_batch(cfg: Config, size: int | None) -> Config:
    """The configuration with this train.micro_batch_size (if there is one) in the place of auto."""
    if size is None or cfg.train.micro_batch_size != AUTO:
        return cfg
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, micro_batch_size=size))


def kept_micro_batch(
    before: Mapping[str, Any], old: Mapping[str, Any], cfg: Config, world: int
) -> int | None:
    """The train.micro_batch_size of the checkpoint, where auto can keep it.

    Args:
        before: configuration of the checkpoint; old: its facts. world: number of processes now.
    """
    train = before["train"]
    size = train["micro_batch_size"] or max(1, train["global_batch_size"] // old["world_size"])
    return size if cfg.train.global_batch_size % (size * world) == 0 else None


def flat(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys down to the values; a value may be a table, as head_args is."""
    leaves: dict[str, Any] = {}
    for key, value in sections.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in KEYS:
            leaves |= flat(value, f"{name}.")
        else:
            leaves[name] = value
    return leaves
