"""What a head file says about its family, and what all families share: building, starting weights."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from data.taxonomy import Taxonomy
from errors import UserError, refusing
from model.backbone import Backbone, transplant
from model.finding import BOXES, Finder
from model.losses.terms import Criterion
from model.source import SAFE, local_folder, quiet_transformers
from settings.keys import Fit, ModelConfig, Task


def refuse_unknown(args: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """
    Raises:
        UserError: naming the first argument that is not among the known ones.
    """
    unknown = sorted(set(args) - set(known))
    if unknown:
        raise UserError(
            f"model.head_args.{unknown[0]}: {where} has no such argument; leave it out, or, where a YAML has it "
            "for another head, say --model.head_args '{}'"
        )


def call_with_mask(model: Any, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
    """The model's outputs, as its image processor's post-processing takes them."""
    return model(pixel_values=pixel_values, pixel_mask=pixel_mask)


MakeConfig = Callable[[dict[str, Any], dict[str, Any], Sequence[int]], PretrainedConfig]


@dataclass(frozen=True)
class HeadFamily:
    """One head family of transformers, as its file describes it.

    `model` is the untouched transformers model; pixel_values float [B, 3, H, W], normalised;
    pixel_mask bool [B, H, W], true on the image.
    """

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    processor_class: type
    defaults: dict[str, Any]
    """Arguments of the config that differ from transformers' own defaults"""
    num_maps: Callable[[dict[str, Any]], int]
    """Number of backbone maps that the head reads, given its arguments"""
    initialise: Callable[[Any], None]
    """The paper's starting weights, where transformers' differ"""
    backbone_of: Callable[[Any], nn.Module]
    num_queries: Callable[[Any], int]
    """Most objects that the head can find in an image, given its config"""
    outputs: Callable[[Any, torch.Tensor, torch.Tensor], Any]
    """(model, pixel_values, pixel_mask) -> everything that gets a loss, as the criterion takes it"""
    criterion: Callable[[Any], Criterion]
    """The losses of a config"""
    few_steps: int
    """Fewer steps than this from scratch are not worth starting"""
    few_steps_source: str
    call: Callable[[Any, torch.Tensor, torch.Tensor], Any] = call_with_mask
    """(model, pixel_values, pixel_mask) -> what the processor's post-processing takes"""
    make_config: MakeConfig | None = None
    """(arguments, what all heads get: backbone_config, id2label, label2id; strides of the backbone's maps)
    -> config; default: the config class takes the first two"""
    tasks: Mapping[Task, Finder] = field(default_factory=lambda: {"detection": BOXES})
    """The model.tasks that it is for, and how what `call` gave is read for each"""
    fit: Fit = "pad"
    """The data.image_size.fit that it needs"""
    prepare: Callable[[Any, Iterable[tuple[torch.Tensor, torch.Tensor]]], None] | None = None
    """(model, pixel_values and pixel_mask of some training images): what it has to know of them before the
    first step"""
    anneal: Callable[[Any, float], None] | None = None
    """(model, part of the steps that is done): before each step, if something in the model depends on it"""
    level_strides: Callable[[Any, Sequence[int]], Sequence[int]] = lambda config, strides: strides
    """Strides of all maps that the head works on, px, given its config and those of the backbone"""


def build_detector(
    family: HeadFamily, cfg: ModelConfig, backbone: Backbone, taxonomy: Taxonomy
) -> tuple[PreTrainedModel, str]:
    """The detector with the backbone's weights in it, and where the head's weights come from.

    Raises:
        UserError: for head_args that the head does not have or refuses.
    """
    config = head_config(family, cfg, backbone, taxonomy)
    if cfg.init_from:
        model, origin = _from_detector(family, cfg.init_from, config)
    else:
        model, origin = _from_scratch(family, config), "from scratch"
    transplant(backbone, family.backbone_of(model))
    return model, origin


def head_config(
    family: HeadFamily, cfg: ModelConfig, backbone: Backbone, taxonomy: Taxonomy
) -> PretrainedConfig:
    """The head's transformers config.

    Raises:
        UserError: naming the argument that does not exist or is refused.
    """
    args = {**family.defaults, **cfg.head_args}
    shared = {
        "backbone_config": backbone.module.config,
        "id2label": taxonomy.id2label,
        "label2id": taxonomy.label2id,
    }
    kind: Any = family.config_class
    with refusing("model.head_args"), quiet_transformers():  # which backbones it knows is no news
        if family.make_config is not None:
            return family.make_config(args, shared, backbone.strides)
        known = {field.name for field in dataclasses.fields(kind)}
        refuse_unknown(args, known, kind.__name__)
        return kind(**shared, **args)


def _from_scratch(family: HeadFamily, config: PretrainedConfig) -> PreTrainedModel:
    with refusing("model.head_args: the head cannot be built"), quiet_transformers():
        model = family.model_class(config)
    family.initialise(model)
    return model


def _from_detector(
    family: HeadFamily, name: str, config: PretrainedConfig
) -> tuple[PreTrainedModel, str]:
    """The detector with the weights of another one of its kind, where shapes agree."""
    folder = local_folder(name, None, "model.init_from")
    kind: Any = family.model_class
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(
                folder,
                config=config,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
                **SAFE,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.init_from {name}: {' '.join(str(error).split())}") from error
    own_backbone = {id(p) for p in family.backbone_of(model).parameters()}
    names = [n for n, p in model.named_parameters() if id(p) not in own_backbone]
    fresh = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    taken = [n for n in names if n not in fresh]
    if not taken:
        raise UserError(f"model.init_from {name}: no weight of this head agrees with it")
    return model, f"{len(taken)}/{len(names)} tensors from {name}"
