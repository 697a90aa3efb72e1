"""Optimizer groups and the learning-rate schedule."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from errors import UserError
from settings.keys import OptimConfig


def build_optimizer(
    model: nn.Module,
    backbone: nn.Module,
    cfg: OptimConfig,
    fresh: Collection[str] = (),
    stages: Mapping[int, int] | None = None,
    neck: nn.Module | None = None,
    fused: bool = False,
) -> torch.optim.AdamW:
    """AdamW over everything that trains, in groups.

    Backbone (with optim.layer_decay each of its stages), neck, head and new layers each with and without weight
    decay; norms, biases and embeddings have none. Each group has a `name` and its full learning rate as
    `base_lr`.

    Args:
        fresh: names of the parameters that begin at random, where others of the head do not.
        stages: number of the stage of each parameter of the backbone, by its id; needed with optim.layer_decay.
        fused: in one kernel.

    Raises:
        UserError: for optim.neck_lr without a neck.
    """
    if neck is None and cfg.neck_lr is not None:
        raise UserError(
            f"optim.neck_lr {cfg.neck_lr}: has no effect, since this detector has no neck; drop it, or set "
            "model.neck"
        )
    rates = {
        "head": cfg.lr,
        "backbone": cfg.lr / 10 if cfg.backbone_lr is None else cfg.backbone_lr,
        "neck": cfg.lr if cfg.neck_lr is None else cfg.neck_lr,
        "new": cfg.lr if cfg.new_layers_lr is None else cfg.new_layers_lr,
    }
    new = set(fresh)
    in_backbone = {id(p) for p in backbone.parameters()}
    in_neck = set() if neck is None else {id(p) for p in neck.parameters()}
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_backbone = id(parameter) in in_backbone
        decays = (
            parameter.ndim > 1
            and id(parameter) not in embeddings
            and "embed" not in name.rpartition(".")[2]
        )
        if id(parameter) in in_neck:
            part = "neck"
        else:
            part = "backbone" if is_backbone else "new" if name in new else "head"
        lr = rates[part]
        if is_backbone and cfg.layer_decay is not None:
            assert stages is not None
            own, last = stages[id(parameter)], max(stages.values())
            part = f"{part} stage {own:0{len(str(last))}}" if own else f"{part} stem"
            lr *= cfg.layer_decay ** (last - own)
        group = groups.setdefault(
            f"{part}, {'decay' if decays else 'no decay'}",
            {
                "params": [],
                "lr": lr,
                "base_lr": lr,
                "weight_decay": cfg.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    named = [{"name": name, **group} for name, group in sorted(groups.items())]
    return torch.optim.AdamW(named, lr=cfg.lr, betas=cfg.betas, fused=fused or None)


def can_be_fused(device: str, precision: str) -> bool:
    """Whether AdamW is to be fused on a kind of device.

    Not with fp16: torch's scaler then leaves it to the kernel to skip a step, and accelerate takes it for one that was
    done. `take_step` asks neither, but the two together have not been tried on a GPU.
    """
    return device in ("cpu", "cuda") and precision != "fp16"


def lr_factor(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Part of the full learning rate in optimizer step `step` (0-based) of `num_steps`.

    A function of the optimizer step alone: neither the number of processes nor accumulation
    enters. Rises linearly to 1 in the last warm-up step and would reach 0 after the last step.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return 1.0
    progress = (step - cfg.warmup_steps) / max(1, num_steps - cfg.warmup_steps)
    if cfg.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def keep_counters_on_cpu(optimizer: torch.optim.Optimizer) -> None:
    """Undo accelerate's move of AdamW's step counters to the GPU, which follows a resume.

    There each would cost two waits for the GPU per parameter and step; fused AdamW alone wants them there.
    """
    if any(group.get("fused") for group in optimizer.param_groups):
        return
    for slots in optimizer.state.values():
        if "step" in slots:
            slots["step"] = slots["step"].cpu()


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its full learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
