"""Is what stands in a checkpoint's files what a run writes there? Files may have been changed, and resealed.

Each check raises ValueError with what is wrong; nothing is taken before all have passed.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

MOST_SAMPLES = 2**50
MOST_STEPS_COUNTED = 2**31 - 1
MOST_TEXT = 10_000
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
SLOTS = {"step", "exp_avg", "exp_avg_sq"}
"""What AdamW keeps of a parameter"""


def check_state(values: Any) -> None:
    """The content of state.json."""
    known = {
        "step",
        "samples_seen",
        "evaluated_step",
        "stale_evaluations",
        "scaler",
        "tracker_run",
        "bad_images",
        "facts",
    }
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(f"expected the keys {sorted(known)}")
    for key in ("step", "samples_seen", "evaluated_step", "stale_evaluations"):
        whole_number(key, values[key], MOST_SAMPLES)
    if values["evaluated_step"] > values["step"]:
        raise ValueError(
            f"evaluated_step {values['evaluated_step']} is after step {values['step']}"
        )
    if values["samples_seen"] < values["step"]:
        raise ValueError(
            f"samples_seen {values['samples_seen']} is less than step {values['step']}"
        )
    scaler, name, bad = values["scaler"], values["tracker_run"], values["bad_images"]
    if scaler is not None:
        if not isinstance(scaler, dict) or set(scaler) != SCALER:
            raise ValueError("scaler is not the state of an fp16 scaler")
        for key, value in scaler.items():
            real_number(f"scaler {key}", value)
        if scaler["scale"] <= 0:
            raise ValueError(f"scaler scale {scaler['scale']} is not above 0")
        whole_number("scaler _growth_tracker", scaler["_growth_tracker"], MOST_STEPS_COUNTED)
    if name is not None and not _is_text(name):
        raise ValueError("tracker_run is not a name")
    if not isinstance(bad, list) or not all(_is_text(text) for text in bad):
        raise ValueError("bad_images is not a list of texts")
    check_facts(values["facts"])


def check_facts(facts: Any) -> None:
    """What state.json says about the run that wrote it."""
    if not isinstance(facts, dict):
        raise ValueError("facts are missing")
    versions = facts.get("versions")
    if not isinstance(versions, dict) or not all(map(_is_text, [*versions, *versions.values()])):
        raise ValueError("facts: versions are not names and texts")
    whole_number("facts: world_size", facts.get("world_size"), 1_000_000, least=1)
    for key in ("backbone_sha256", "data_sha256"):
        if not _is_text(facts.get(key)):
            raise ValueError(f"facts: {key} is not a text")
    if not isinstance(facts.get("labels"), list):
        raise ValueError("facts: labels are not a list")


def check_best(values: Any) -> None:
    """The content of best.json."""
    if values is None:
        return
    if not isinstance(values, dict) or set(values) != {"metric", "step"}:
        raise ValueError("expected metric and step")
    whole_number("step", values["step"], MOST_SAMPLES)
    real_number("metric", values["metric"])
    if not 0 <= values["metric"] <= 1:
        raise ValueError(f"metric {values['metric']} is not in 0 ... 1")


def check_sections(values: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.yaml: keys that there are today, with defaults for those it lacks."""
    if not isinstance(values, dict):
        raise ValueError("expected sections such as run and data")
    merged: dict[str, Any] = {}
    for section, keys in defaults.items():
        given = values.get(section, {})
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"section {section} does not hold keys")
        for key, default in keys.items():
            if isinstance(default, dict) and not isinstance(given.get(key, default), dict):
                raise ValueError(f"{section}.{key} is no table")
        merged[section] = {key: given.get(key, default) for key, default in keys.items()}
    for key in ("global_batch_size", "micro_batch_size"):
        value = merged["train"][key]
        if not (value is None and key == "micro_batch_size"):
            whole_number(f"train.{key}", value, MOST_SAMPLES, least=1)
    return merged


def check_tensors(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Tensors that are to take the place of `wanted`: names, shapes, types, finite values."""
    if differing := sorted(set(tensors) ^ set(wanted)):
        raise ValueError(f"{len(differing)} tensors differ, first: {differing[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {wanted[name].dtype} "
                f"{list(wanted[name].shape)}"
            )
        check_finite(name, tensor)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """No infinity, and nothing that is no number."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is not finite")


def check_slots(
    tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> None:
    """AdamW's state by `slot/name`, of all parameters or (before the first step) of none."""
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        if slot not in SLOTS or name not in parameters:
            raise ValueError(f"{key} belongs to another model")
        shape = torch.Size() if slot == "step" else parameters[name].shape
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"{key} is {tensor.dtype} {list(tensor.shape)}, expected {list(shape)}"
            )
        check_finite(key, tensor)
        if slot != "exp_avg" and bool((tensor < 0).any()):
            raise ValueError(f"{key} is negative")
    names = {
        slot: {k.partition("/")[2] for k in tensors if k.startswith(f"{slot}/")} for slot in SLOTS
    }
    if len({frozenset(found) for found in names.values()}) > 1:
        raise ValueError("some parameters have a part of their state only")


def check_random(tensors: Mapping[str, torch.Tensor]) -> None:
    """torch's random states by `cpu/rank` and `cuda/rank`."""
    if "cpu/0" not in tensors:
        raise ValueError("the random state of rank 0 is missing")
    length = {"cpu": torch.get_rng_state().shape, "cuda": torch.Size([16])}
    for key, tensor in tensors.items():
        kind, _, rank = key.partition("/")
        if kind not in length or not rank.isdecimal() or tensor.dtype != torch.uint8:
            raise ValueError(f"{key} is no random state")
        if tensor.shape != length[kind]:
            raise ValueError(f"{key} has {tensor.numel()} bytes instead of {length[kind].numel()}")


def whole_number(name: str, value: Any, most: int, least: int = 0) -> None:
    """An integer in `least` ... `most`; True is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} {str(value)[:40]} is not a whole number of {least} ... {most}")


def real_number(name: str, value: Any) -> None:
    """A finite number; True is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} {str(value)[:40]} is not a finite number")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT
