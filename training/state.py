"""What a run is made of between two steps, as tensors and numbers: taken, written and loaded.

The schedule is a function of the step, the data order of the samples seen, dropout of both, so
they need no state of their own. A frozen backbone is known by its fingerprint alone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from devices import pins, wait_for
from errors import UserError
from training.sharding import cut_like
from training.validity import check_random, check_slots, check_state, check_tensors

WEIGHTS = "model/trainable.safetensors"
AVERAGE = "model/average.safetensors"
OPTIMIZER = "state/optimizer.safetensors"
RNG = "state/rng.safetensors"
STATE = "state/state.json"
CONFIG = "state/config.yaml"


@dataclass
class TrainState:
    """Everything a run knows about itself besides tensors."""

    step: int = 0
    """Optimizer steps done"""
    samples_seen: int = 0
    """Place in the sample stream; steps that were skipped count as well, attempts of fp16 with a lower scale do not"""
    evaluated_step: int = 0
    """Step of the last whole evaluation"""
    stale_evaluations: int = 0
    """Evaluations since the best one"""
    scaler: dict[str, Any] | None = None
    """State of the fp16 scaler"""
    tracker_run: str | None = None
    """Name of the run in the tracker"""
    bad_images: list[str] = field(default_factory=list)
    """Training images that could not be decoded, and why"""
    facts: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of backbone and data, package versions, world size"""

    def to_json(self) -> str:
        """As it stands in a checkpoint."""
        return json.dumps(asdict(self), indent=2) + "\n"


class Snapshot:
    """Copies of all tensors of a checkpoint in main memory, by file.

    The memory is kept between two snapshots: taking one then costs a copy, and no allocation.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, torch.Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(t.nbytes for tensors in self.files.values() for t in tensors.values())

    def take(self, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Copy the tensors of each file; returns when training may change them."""
        devices = set()
        old, self.files = self.files, {}
        for file, tensors in files.items():
            kept = old.get(file, {})
            copies = self.files.setdefault(file, {})
            for name, tensor in tensors.items():
                tensor, copy = tensor.detach(), kept.get(name)
                if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                    pinned = pins(tensor.device)
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                copies[name] = copy.copy_(tensor, non_blocking=True)
                devices.add(tensor.device)
        for device in devices:
            wait_for(device)


def checkpoint_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, torch.Tensor],
    rng: Mapping[str, torch.Tensor],
) -> dict[str, Mapping[str, torch.Tensor]]:
    """The tensors of a checkpoint by file.

    What an optimizer step changes is not copied; buffers, which forward passes change, are.

    Args:
        model: the detector itself, not its DDP wrapper; optimizer: the torch optimizer.
        average: averaged weights by name, may be empty.
        rng: random states as `gather_rng` gives them.
    """
    names = _optimizer_names(model, optimizer)
    slots = {
        f"{slot}/{names[number]}": value
        for number, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
    }
    weights = {
        name: tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
        for name, tensor in trainable_tensors(model).items()
    }
    files = {WEIGHTS: weights, OPTIMIZER: slots, RNG: rng}
    return {**files, AVERAGE: average} if average else files


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


def gather_rng(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Collective: called on every rank. torch's random states of all ranks by `cpu/0`, `cuda/0`.

    Nothing of ours draws from them (dropout is keyed anew in each micro-batch); they are kept for
    a head that does.
    """
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    states: dict[str, torch.Tensor] = {}
    for kind, state in own.items():
        everyone = accelerator.gather(state[None].to(accelerator.device)).cpu()
        states |= {f"{kind}/{rank}": row for rank, row in enumerate(everyone)}
    return states


def load_state(folder: Path) -> TrainState:
    """The state file of a checkpoint.

    Raises:
        UserError: if the folder is no checkpoint.
    """
    try:
        values = json.loads((folder / STATE).read_bytes())
        if isinstance(values, dict):
            values.setdefault("stale_evaluations", 0)  # checkpoints of before train.patience
        check_state(values)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / STATE}: not a checkpoint's of this version that can be read: {error}"
        ) from error
    return TrainState(**values)


def load_average(folder: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint; empty if it has none.

    Raises:
        UserError: if they are not those of the model.
    """
    if not (folder / AVERAGE).is_file():
        return {}
    return _read(folder / AVERAGE, lambda tensors: check_tensors(tensors, trainable_tensors(model)))


def load_model(folder: Path, model: nn.Module, averaged: bool = False) -> None:
    """Load a checkpoint's trainable weights, or their average, into the detector.

    Raises:
        UserError: if names, shapes or types differ, which means another head or freezing, or a value
            is not finite.
    """
    averaged = averaged and (folder / AVERAGE).is_file()
    own = trainable_tensors(model)
    tensors = _read(
        folder / (AVERAGE if averaged else WEIGHTS), lambda tensors: check_tensors(tensors, own)
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(cut_like(tensors[name], tensor))


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state from a checkpoint.

    Raises:
        UserError: if it belongs to another model.
    """
    names = _optimizer_names(model, optimizer)
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in names}
    state: dict[int, dict[str, torch.Tensor]] = {}
    tensors = _read(folder / OPTIMIZER, lambda tensors: check_slots(tensors, wanted))
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        state.setdefault(names.index(name), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_rng(folder: Path, rank: int) -> None:
    """Set torch's random state to that of `rank`, if the run had such a rank.

    Raises:
        UserError: if the file holds something else.
    """
    states = _read(folder / RNG, check_random)
    if f"cpu/{rank}" in states:
        torch.set_rng_state(states[f"cpu/{rank}"])
    if f"cuda/{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda/{rank}"])


def _optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order of its state_dict."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _read(file: Path, check: Callable[[dict[str, torch.Tensor]], None]) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file}: not a readable checkpoint file: {error}") from error
    try:
        check(tensors)
    except ValueError as error:
        raise UserError(f"{file}: was written for another model, or changed: {error}") from error
    return tensors
