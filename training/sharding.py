"""Training with a part of each weight on each process (FSDP2, `train.parallel fsdp2`).

Parameters that train are cut along their first dimension, and with them gradients, AdamW's moments and the average;
what is frozen is whole everywhere. A layer's weights are put together for its own forward and backward pass, and its
gradient is cut again after each micro-batch, so that no process ever holds more than a few whole layers.

By torch's `fully_shard` and not by accelerate's plugin: that leaves out modules, not frozen parameters of modules that
train, loses the optimizer's state of a checkpoint that was loaded before it wraps, and casts weights to the precision
of the forward pass, where ours is that of autocast.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from settings.keys import Parallel


def wrapped(
    accelerator: Accelerator,
    trainable: nn.Module,
    optimizer: torch.optim.Optimizer,
    parallel: Parallel,
    also_called: tuple[str, ...] = (),
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Collective: called on every rank. Module and optimizer, ready for the first step.

    Args:
        also_called: methods besides `forward` that need the weights.
    """
    if parallel == "fsdp2":
        shard(trainable, optimizer, accelerator.device)
        for name in also_called:
            register_fsdp_forward_method(trainable, name)
        # Not as a module to be trained, which accelerate would wrap in DDP; autocast is put around it all the same.
        model = accelerator.prepare_model(trainable, evaluation_mode=True)
        return model, accelerator.prepare_optimizer(optimizer)
    model, optimizer = accelerator.prepare(trainable, optimizer)
    return model, optimizer


def shard(trainable: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Collective: called on every rank. Cut what trains, and the optimizer's state with it."""
    # Terms of the loss are views, which nobody changes in place.
    warnings.filterwarnings("ignore", rf".*\(FSDP{type(trainable).__name__}\) returned a view")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole_ones = {n: p for n, p in trainable.named_parameters() if p.requires_grad}
    for parameter in whole_ones.values():
        _take_from_main(parameter, device)
    frozen = {p for p in trainable.parameters() if not p.requires_grad}
    # The root as well: what is left whole after a forward pass would be taken for the weights by average and checkpoints.
    for module in (*layers(trainable), trainable):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
    cut = dict(trainable.named_parameters())
    _follow(optimizer, {whole_one: cut[name] for name, whole_one in whole_ones.items()})


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Modules in lists, inner ones first, of which something trains and whose weights no module outside shares."""
    owners: dict[int, set[nn.Module]] = defaultdict(set)
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            owners[id(parameter)].add(owner)
    listed = {c for m in module.modules() if isinstance(m, nn.ModuleList) for c in m}
    for layer in reversed(list(module.modules())):
        if layer not in listed or not any(True for _ in layer.children()):
            continue
        inside = set(layer.modules())
        trained = [p for p in layer.parameters() if p.requires_grad]
        if trained and all(owners[id(p)] <= inside for p in trained):
            yield layer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Collective for a tensor that is cut: called on every rank. The whole of it, on each."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor, if `like` is cut, and else the tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor; in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(
    files: Mapping[str, Mapping[str, torch.Tensor]], keeps: bool
) -> dict[str, dict[str, torch.Tensor]]:
    """Collective: called on every rank. Copies of tensors by file, whole and in main memory.

    They are put together one by one, so that a device needs room for the largest one alone.

    Args:
        keeps: whether this rank gets them; the others get nothing.
    """
    found: dict[str, dict[str, torch.Tensor]] = {file: {} for file in files}
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            full = whole(tensor)
            if keeps:
                found[file][name] = (
                    full.cpu() if isinstance(tensor, DTensor) else full.cpu().clone()
                )
    return found if keeps else {}


@torch.no_grad()
def _take_from_main(parameter: nn.Parameter, device: torch.device) -> None:
    """Collective: called on every rank. The value of rank 0, as DDP does at its start."""
    value = parameter.detach().to(device)
    dist.broadcast(value, 0)
    parameter.copy_(value)


def _follow(optimizer: torch.optim.Optimizer, cut: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Let an optimizer, with the state it has, work on the parts."""
    state: dict[Any, Any] = defaultdict(dict)
    for before, slots in optimizer.state.items():
        state[cut[before]] = {
            slot: value if value.ndim == 0 else cut_like(value, cut[before])
            for slot, value in slots.items()
        }
    optimizer.state = state  # type: ignore[assignment]
    for group in optimizer.param_groups:
        group["params"] = [cut[parameter] for parameter in group["params"]]
