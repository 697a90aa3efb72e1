"""Go on from a checkpoint: which one, whether it belongs to this run, and what was changed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from errors import UserError
from model.build import Detector
from run.changes import (
    changed_keys,
    check_changes,
    kept_micro_batch,
    note_world,
    with_micro_batch,
)
from run.log import DONE, done_text
from run.precision import load_scaler
from run.together import told_by_main
from settings.keys import AUTO, Config
from settings.walk import harmless_keys
from training.checkpoint import Checkpoints
from training.ema import Ema
from training.shelf import Best, Shelf, find_flaw, read_config, step_of
from training.state import (
    TrainState,
    load_average,
    load_model,
    load_optimizer,
    load_rng,
    load_state,
)

LEFT_OPEN = (None, AUTO)
"""Values in whose place a checkpoint has what was found"""
NEVER_FOUND = {"train.patience"}
"""Keys whose default is no such place, and lets a run go on"""
FITTED = {"optim.warmup_steps"}
"""Keys in whose place a checkpoint may have another value"""
READ_BY = ("data.", "model.task", "run.seed")
"""What keys begin with that say which images and labels there are"""
AFTER_READING = (
    *("data.image_size.", "data.augment", "data.num_workers", "data.strict"),
    "data.cache_",
)
"""What those keys of the data begin with that say nothing of it"""
FINGERPRINTS = {
    "backbone_sha256": ("another backbone", ("model.backbone", "model.init_from")),
    "labels": ("other classes, or another order of them", READ_BY),
    "data_sha256": ("another dataset, or other boxes or labels in it", READ_BY),
}
"""Facts that no key can allow to change: what another one means, and the keys that it follows from"""


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on."""

    state: TrainState
    folder: Path | None
    """The checkpoint; None for a fresh start"""
    best: Best | None = None
    """The best evaluation so far, if its checkpoint is here"""
    notes: tuple[str, ...] = ()
    """Lines for the log"""
    micro_batch_size: int | None = None
    """That of the checkpoint, where auto can keep it"""


def find_checkpoint(
    cfg: Config, accelerator: Accelerator, checkpoints: Checkpoints
) -> tuple[Path | None, list[str]]:
    """Collective: called on every rank. The checkpoint to go on from, verified by rank 0.

    Returns: its folder (None for a fresh start), and lines for the log.

    Raises:
        UserError: if the wanted checkpoint is damaged, or none is intact.
    """
    return told_by_main(accelerator, lambda: _find(cfg, checkpoints))


def _find(cfg: Config, checkpoints: Checkpoints) -> tuple[Path | None, list[str]]:
    if cfg.run.resume == "never":
        return None, []
    if cfg.run.resume == "auto":
        return checkpoints.newest_intact()
    notes = checkpoints.tidy()
    folder = Path(cfg.run.resume).resolve()
    if defect := find_flaw(folder):
        raise UserError(f"run.resume {cfg.run.resume}: not an intact checkpoint: {defect}")
    names = checkpoints.names()
    inside = folder.parent == checkpoints.folder.resolve()
    if names and inside and step_of(names[0]) > load_state(folder).step:
        raise UserError(
            f"run.resume {cfg.run.resume}: {checkpoints.folder} has newer checkpoints, up to "
            f"{names[0]}; branch off into another run.output_dir, or remove them"
        )
    if names and not inside:
        raise UserError(
            f"run.resume {cfg.run.resume}: {checkpoints.folder} has checkpoints of its own, up to "
            f"{names[0]}; go on there with --run.resume auto, or choose another run.output_dir"
        )
    return folder, notes


def nothing_left(cfg: Config) -> str | None:
    """What is said of a run that is to go on by the command that has finished it: one that a scheduler starts again, for
    instance. None of any other, whose data and model are to be loaded. For the main rank alone.
    """
    folder = Path(cfg.run.output_dir)
    newest = Shelf(folder / "checkpoints").newest()
    if cfg.run.resume != "auto" or cfg.hub.push or newest is None:
        return None
    whole = (folder / DONE).is_file() and (folder / "export/model.safetensors").is_file()
    if not whole or find_flaw(newest) is not None:
        return None
    state, train = load_state(newest), cfg.train
    step = state.step
    if (folder / DONE).read_text() != done_text(step):
        return None
    without_effect = {key for key in harmless_keys() if key.startswith("run.")} | FITTED
    for key, (_, value) in changed_keys(read_config(newest), cfg).items():
        if (value not in LEFT_OPEN or key in NEVER_FOUND) and key not in without_effect:
            return None
    told = f"{folder} is finished: trained to step {step}, and exported to {folder / 'export'}; nothing was done"
    length = f"--train.steps (now {train.steps})"
    if train.steps is None:
        length = f"--train.epochs (now {train.epochs:g})"
    longer = f"{length} with --run.allow_changes true"
    if train.patience is not None and state.stale_evaluations >= train.patience:
        patience = f"--train.patience (now {train.patience})"
        whole = train.steps is not None and step >= train.steps
        longer = f"{patience} and {longer}" if whole else patience
    return f"{told}. To go on, give a larger {longer}"


def check_fingerprints(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    changes: Mapping[str, tuple[Any, Any]],
    folder: Path,
) -> None:
    """Whether the checkpoint `folder` is of this backbone and this dataset.

    Args:
        old and new: facts of the checkpoint and of now. changes: as `changed_keys` gives them.

    Raises:
        UserError: naming the keys that it may be due to, or saying that none of them has changed.
    """
    for name, (meaning, prefixes) in FINGERPRINTS.items():
        if old.get(name) == new[name]:
            continue
        lines = [
            f"{key}: {before} -> {now}"
            for key, (before, now) in changes.items()
            if key.startswith(prefixes) and not key.startswith(AFTER_READING)
        ]
        what = f"{folder}: was trained with {meaning}"
        advice = "put them back, or start a new run in another run.output_dir"
        if not lines:
            raise UserError(f"{what}; no key says so: files or code have changed since; {advice}")
        raise UserError("\n  ".join([f"{what}; these keys were different:", *lines, advice]))


def resume(
    cfg: Config,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    facts: Mapping[str, Any],
) -> Resumed:
    """Collective: called on every rank. The state to start from, with all tensors loaded.

    Raises:
        UserError: if the checkpoint belongs to another backbone, dataset or model, or if keys that
            change the training differ without run.allow_changes.
    """
    folder, notes = find_checkpoint(cfg, accelerator, checkpoints)
    if folder is None:
        return Resumed(TrainState(facts=dict(facts)), None, notes=tuple(notes))
    state = load_state(folder)
    before = read_config(folder)
    check_fingerprints(state.facts, facts, changed_keys(before, cfg), folder)
    kept = kept_micro_batch(before, state.facts, cfg, accelerator.num_processes)
    cfg = with_micro_batch(cfg, kept)
    notes += check_changes(before, cfg, folder)
    notes += note_world(before, cfg, state.facts, facts, detector.model.config.to_dict())
    load_model(folder, detector.model)
    load_optimizer(folder, detector.model, optimizer)
    load_rng(folder, accelerator.process_index)
    load_scaler(accelerator, state.scaler, cfg.train)
    ema.tensors = load_average(folder, detector.model) if cfg.train.ema_decay is not None else {}
    state = dataclasses.replace(state, facts=dict(facts))
    if before["train"]["global_batch_size"] != cfg.train.global_batch_size:
        size = cfg.train.global_batch_size
        state.samples_seen = -(-state.samples_seen // size) * size
    if folder.parent.resolve() != checkpoints.folder.resolve():  # a branch of another run
        state.tracker_run, state.evaluated_step = None, 0
    same_metric = before["eval"]["metric"] == cfg.eval.metric
    best, lines = told_by_main(accelerator, lambda: checkpoints.find_best(folder, same_metric))
    return Resumed(state, folder, best, (*notes, *lines), kept)
