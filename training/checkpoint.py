"""Checkpoints: `checkpoints/step-000500/{model,state}/`, and links to the last and the best.

A checkpoint is written to a temporary folder, flushed and renamed, so that a folder with its final
name is complete. It holds what trains, and of a frozen backbone only the fingerprint. All files are
safetensors, JSON or YAML: loading one runs no code.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from config import Config, UserError, config_to_dict

PREFIX = "step-"


@dataclass
class TrainState:
    """Everything a run knows about itself besides tensors."""

    step: int = 0
    """Optimizer steps done"""
    samples_seen: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of backbone and data, package versions, world size"""

    def is_best(self, metric: float | None) -> bool:
        """Record `metric` of the present step if it beats all before it."""
        if metric is None or (self.best_metric is not None and metric <= self.best_metric):
            return False
        self.best_metric, self.best_step = metric, self.step
        return True


class Checkpoints:
    """The checkpoints folder of one run."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def newest(self) -> Path | None:
        """The complete checkpoint of the most steps."""
        found = self._complete()
        return found[-1] if found else None

    def best(self) -> Path | None:
        """The checkpoint that the link `best` names."""
        link = self.folder / "best"
        return link.resolve() if link.exists() else None

    def save(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, torch.Tensor],
        state: TrainState,
        cfg: Config,
        best: bool,
    ) -> None:
        """Collective: called on every rank. Write the checkpoint of `state.step`.

        Args:
            model: the detector itself, not its DDP wrapper; optimizer: the torch optimizer.
            average: averaged weights by name, may be empty.
            best: whether the link `best` moves here.
        """
        final = self.folder / f"{PREFIX}{state.step:06d}"
        temporary = self.folder / f".writing-{final.name}"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "model").mkdir(parents=True)
            (temporary / "state").mkdir()
            _write(temporary / "model" / "trainable.safetensors", trainable_tensors(model))
            if average:
                _write(temporary / "model" / "average.safetensors", average)
            _write_state(temporary / "state", accelerator, model, optimizer, state, cfg)
        accelerator.wait_for_everyone()
        save_file(
            rng_state(), temporary / "state" / f"rng-{accelerator.process_index:05d}.safetensors"
        )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _flush(temporary)
            if final.exists():  # the same step, reached again after a resume
                shutil.rmtree(final)
            temporary.rename(final)
            _link(self.folder / "last", final.name)
            if best:
                _link(self.folder / "best", final.name)
            self._prune()
        accelerator.wait_for_everyone()

    def _complete(self) -> list[Path]:
        found = [p for p in self.folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
        return sorted(found, key=step_of)

    def _prune(self) -> None:
        protected = {self.folder / "last", self.folder / "best"}
        protected = {link.resolve() for link in protected if link.exists()}
        for old in self._complete()[: -self.keep]:
            if old.resolve() not in protected:
                shutil.rmtree(old)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name[len(PREFIX) :])


def load_state(folder: Path) -> TrainState:
    """The state file of a checkpoint.

    Raises:
        UserError: if the folder is no checkpoint.
    """
    try:
        values = json.loads((folder / "state" / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a checkpoint: {error}") from error
    values.pop("scaler")
    return TrainState(**values)


def load_average(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint; empty if it has none."""
    file = folder / "model" / "average.safetensors"
    return _read(file) if file.is_file() else {}


def load_model(folder: Path, model: nn.Module, averaged: bool = False) -> None:
    """Load a checkpoint's trainable weights, or their average, into the detector.

    Raises:
        UserError: if names or shapes differ, which means another head or freezing.
    """
    averaged = averaged and (folder / "model" / "average.safetensors").is_file()
    tensors = _read(
        folder / "model" / ("average.safetensors" if averaged else "trainable.safetensors")
    )
    own = trainable_tensors(model)
    differing = set(tensors) ^ set(own)
    differing |= {n for n in set(tensors) & set(own) if tensors[n].shape != own[n].shape}
    if differing:
        raise UserError(
            f"{folder}: was written for another model; {len(differing)} tensors differ, first: "
            f"{sorted(differing)[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def load_optimizer(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Load optimizer, fp16 scaler and this rank's random state from a checkpoint."""
    tensors = _read(folder / "state" / "optimizer.safetensors")
    names = _optimizer_names(model, optimizer)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        state.setdefault(names.index(name), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scaler = json.loads((folder / "state" / "state.json").read_text())["scaler"]
    if scaler and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(scaler)
    rng = folder / "state" / f"rng-{accelerator.process_index:05d}.safetensors"
    if rng.is_file():
        set_rng_state(_read(rng))


def trainable_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds: parameters that train, and buffers of modules that are not frozen."""
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    parameters = {n: p for n, p in model.named_parameters() if id(p) not in frozen}
    persistent = set(model.state_dict())
    training_modules = {n.rpartition(".")[0] for n in parameters}
    buffers = {
        n: b
        for n, b in model.named_buffers()
        if n in persistent and n.rpartition(".")[0] in training_modules
    }
    return {**parameters, **buffers}


def rng_state() -> dict[str, torch.Tensor]:
    """Random state of torch on this rank, CPU and current CUDA device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Inverse of `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, file)


def _write_state(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    cfg: Config,
) -> None:
    names = _optimizer_names(model, optimizer)
    tensors = {
        f"{slot}/{names[number]}": value
        for number, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
    }
    _write(folder / "optimizer.safetensors", tensors)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    content = {**asdict(state), "scaler": scaler}
    (folder / "state.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config_to_dict(cfg), sort_keys=False))


def _optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order of its state_dict."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a readable checkpoint file: {error}") from error


def _flush(folder: Path) -> None:
    """Force files and folders to disk before the rename makes them count."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
