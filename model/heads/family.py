"""What all head files share: building the config, the starting weights, the processor."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from data.schema import Taxonomy
from errors import UserError
from model.backbone import Backbone, transplant
from model.source import local_folder, quiet_transformers
from settings.keys import ModelConfig


@dataclass(frozen=True)
class Head:
    """One head family of transformers, as its file describes it."""

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    processor_class: type
    defaults: dict[str, Any]
    """Arguments of the config that differ from transformers' own defaults"""
    focal: bool
    """Classification by sigmoid and focal loss, else by softmax with a no-object class"""
    num_maps: Callable[[dict[str, Any]], int]
    """Number of backbone maps that the head reads, given its arguments"""
    initialise: Callable[[PreTrainedModel], None]
    """The paper's starting weights, where transformers' differ"""
    backbone_of: Callable[[PreTrainedModel], nn.Module]
    few_steps: int
    """Fewer steps than this from scratch are not worth starting"""
    few_steps_source: str
    proposals_of: Callable[[Any], tuple[torch.Tensor, torch.Tensor] | None] = lambda outputs: None
    """From the base model's outputs: logits [B, S, C] and cxcywh boxes [B, S, 4] in [0, 1] that are
    proposed before the decoder, if they are to be trained"""


def build_detector(
    head: Head, cfg: ModelConfig, backbone: Backbone, taxonomy: Taxonomy
) -> tuple[PreTrainedModel, str]:
    """The detector with the backbone's weights in it, and where the head's weights come from.

    Raises:
        UserError: for head_args that the head does not have or refuses.
    """
    config = head_config(head, cfg, backbone, taxonomy)
    if cfg.init_from:
        model, origin = _from_detector(head, cfg.init_from, config)
    else:
        model, origin = _from_scratch(head, config), "from scratch"
    transplant(backbone, head.backbone_of(model))
    return model, origin


def head_config(
    head: Head, cfg: ModelConfig, backbone: Backbone, taxonomy: Taxonomy
) -> PretrainedConfig:
    """The head's transformers config.

    Raises:
        UserError: naming the argument that does not exist or is refused.
    """
    known = {field.name for field in dataclasses.fields(head.config_class)}
    unknown = sorted(set(cfg.head_args) - known)
    if unknown:
        raise UserError(
            f"model.head_args.{unknown[0]}: {head.config_class.__name__} has no such argument"
        )
    kind: Any = head.config_class
    try:
        return kind(
            backbone_config=backbone.module.config,
            id2label=taxonomy.id2label,
            label2id=taxonomy.label2id,
            **{**head.defaults, **cfg.head_args},
        )
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"model.head_args: {' '.join(str(error).split())}") from error


def _from_scratch(head: Head, config: PretrainedConfig) -> PreTrainedModel:
    try:
        model = head.model_class(config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model.head_args: the head cannot be built: {error}") from error
    head.initialise(model)
    return model


def _from_detector(head: Head, name: str, config: PretrainedConfig) -> tuple[PreTrainedModel, str]:
    """The detector with the weights of another one of its kind, where shapes agree."""
    folder = local_folder(name, None, "model.init_from")
    kind: Any = head.model_class
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(
                folder, config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.init_from {name}: {' '.join(str(error).split())}") from error
    own_backbone = {id(p) for p in head.backbone_of(model).parameters()}
    names = [n for n, p in model.named_parameters() if id(p) not in own_backbone]
    fresh = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    taken = [n for n in names if n not in fresh]
    if not taken:
        raise UserError(f"model.init_from {name}: no weight of this head agrees with it")
    return model, f"{len(taken)}/{len(names)} tensors from {name}"
