"""The stages of a backbone (of a plain vision transformer: its layers), and how many of them do not train."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from data.canvas import round_up
from errors import UserError

PROBE_PX = 224
"""A multiple of the usual strides, also of patches of 14 px"""
RANDOM_PLACES = "RopePositionEmbedding"
"""End of the name of modules that move or stretch positions at random in training"""


def freeze(module: nn.Module) -> None:
    """No gradient, no autograd graph, and eval mode that `train()` on a parent does not undo."""
    module.requires_grad_(False)
    hold(module)
    module.forward = torch.no_grad()(module.forward)  # type: ignore[method-assign]


def hold(module: nn.Module) -> None:
    """Eval mode that `train()` on a parent does not undo."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign, assignment]


def train_from(backbone: nn.Module, number: int, multiple: int = 1) -> None:
    """Train a backbone but for what comes before its stage `number`, which is frozen; 0: all of it.

    Args:
        multiple: sides of images have to be multiples of it, px.

    Raises:
        UserError: if it has no stage after that, or its stages cannot be told.
    """
    backbone.requires_grad_(True)
    for module in backbone.modules():
        if type(module).__name__.endswith(RANDOM_PLACES):
            hold(module)  # the noise would be another one on each process
    if number == 0:
        return
    stages = stages_of(backbone)
    if number >= len(stages):
        raise UserError(
            f"model.freeze stages:{number}: the backbone has {len(stages)} stages; stages:{len(stages) - 1} is "
            "the most, and all keeps everything as it is"
        )
    early = {id(p) for p in [*before(backbone, number, multiple), *_unused(backbone, multiple)]}
    for module in _largest_of(backbone, early):
        freeze(module)
    for stage in list(stages)[:number]:
        freeze(stage)


def stages_of(backbone: nn.Module) -> nn.ModuleList:
    """The list of modules that holds one for each stage.

    Raises:
        UserError: if there is none.
    """
    config: Any = backbone.config
    names = [name for name in getattr(config, "stage_names", ()) if name != "stem"]
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and names and len(module) == len(names):
            return module
    kind = getattr(config, "model_type", type(backbone).__name__)
    raise UserError(
        f"model.freeze and optim.layer_decay: the stages of a backbone of the type {kind!r} cannot be told; set "
        "model.freeze all or none, and leave optim.layer_decay out"
    )


def stage_numbers(backbone: nn.Module, multiple: int = 1) -> dict[int, int]:
    """The stage of each parameter by the parameter's id, from 1; 0 for what comes before them; the last one for
    output norms.

    Args:
        multiple: sides of images have to be multiples of it, px.
    """
    stages = stages_of(backbone)
    found = {id(parameter): len(stages) for parameter in backbone.parameters()}
    for parameter in before(backbone, 0, multiple):
        found[id(parameter)] = 0
    for index, stage in enumerate(stages):
        found |= {id(parameter): index + 1 for parameter in stage.parameters()}
    return found


def before(backbone: nn.Module, number: int, multiple: int = 1) -> list[nn.Parameter]:
    """The parameters that what enters stage `number` (0-based) depends on, as the gradients of a blank image
    show them."""
    entered: list[torch.Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
        entered.append(next(value for value in values if isinstance(value, torch.Tensor)))

    handle = stages_of(backbone)[number].register_forward_pre_hook(note, with_kwargs=True)
    try:
        _probe(backbone, multiple)
    finally:
        handle.remove()
    return _behind(entered[0], backbone)


def _unused(backbone: nn.Module, multiple: int) -> list[nn.Parameter]:
    """The parameters that no map depends on, as the token of masked training."""
    used = {
        id(p) for feature_map in _probe(backbone, multiple) for p in _behind(feature_map, backbone)
    }
    return [parameter for parameter in backbone.parameters() if id(parameter) not in used]


def _probe(backbone: nn.Module, multiple: int) -> list[torch.Tensor]:
    side = round_up(PROBE_PX, multiple)
    was_training = backbone.training
    backbone.eval()
    with torch.enable_grad():
        device = next(backbone.parameters()).device
        maps = backbone(torch.zeros(1, 3, side, side, device=device)).feature_maps
    backbone.train(was_training)
    return list(maps)


def _behind(value: torch.Tensor, backbone: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not value.requires_grad:
        return []
    gradients = torch.autograd.grad(value.sum(), parameters, allow_unused=True, retain_graph=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _largest_of(module: nn.Module, parameters: set[int]) -> Iterable[nn.Module]:
    """The largest modules that have only such parameters; a parameter that stands alone among others stops
    training."""
    for parameter in module.parameters(recurse=False):
        if id(parameter) in parameters:
            parameter.requires_grad_(False)
    for child in module.children():
        own = {id(parameter) for parameter in child.parameters()}
        if own and own <= parameters:
            yield child
        elif own & parameters:
            yield from _largest_of(child, parameters)
