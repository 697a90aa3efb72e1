"""Which neck a detector gets, and what of it is the pretrained backbone's and what is not."""

from dataclasses import replace
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from errors import UserError
from model.backbone import Backbone
from model.heads.family import HeadFamily
from model.necks.necked_backbone import NECKED, NeckedBackbone, NeckedBackboneConfig
from model.source import quiet_transformers
from settings.keys import ModelConfig

MOST_MAPS = 4
"""Of a neck that makes several maps of one"""
ONE_MAP = ("pyramid", "cnn_branch")
"""Necks that make several maps of the last one of a plain vision transformer"""

PLAIN = {necked.config_class: plain for plain, necked in NECKED.items()}
for necked in NECKED.values():
    AutoConfig.register(necked.config_class.model_type, necked.config_class)
    getattr(transformers, necked._auto_class).register(necked.config_class, necked)


def shown_backbone(cfg: ModelConfig, family: HeadFamily, backbone: Backbone, maps: int) -> Backbone:
    """The backbone as the head gets it: itself, or its config, shapes and strides with a neck around it.

    Args:
        maps: number of maps that the head reads.

    Raises:
        UserError: if the neck fits neither the backbone nor the head.
    """
    kind = cfg.neck or _default(cfg, family, backbone)
    if kind == "none":
        return backbone
    if family.model_class not in NECKED:
        raise UserError(
            f"model.neck {kind}: {cfg.head} reads the backbone's own maps; leave model.neck out"
        )
    if maps < 2:
        raise UserError(
            f"model.neck {kind}: {cfg.head} with these head_args reads one map, and a neck makes several; leave "
            "model.neck out, or change model.head_args (deformable_detr: num_feature_levels)"
        )
    _refuse_backbone(kind, backbone)
    config: Any = backbone.module.config
    if kind in ONE_MAP:
        strides = _strides_around(kind, backbone.strides[-1], maps)
        if not hasattr(backbone.module, "hidden_states_norms"):  # which are among the tensors
            config.out_features = list(config.out_features)[-1:]
    else:
        further = range(1, maps - len(backbone.strides) + 1)
        strides = (*backbone.strides, *(backbone.strides[-1] * 2**n for n in further))
    with quiet_transformers():
        necked_config = NeckedBackboneConfig(
            config, kind, cfg.neck_channels, backbone.strides[-len(config.out_features) :], strides
        )
        with torch.device("meta"):  # only its shapes are of interest
            module = NeckedBackbone(necked_config)
    return replace(backbone, module=module, strides=tuple(strides))


def _default(cfg: ModelConfig, family: HeadFamily, backbone: Backbone) -> str:
    """A head that needs several strides on maps of one gets a pyramid; stages that are named are read as
    they are."""
    one_stride = len(backbone.strides) > 1 and len(set(backbone.strides)) == 1
    wanted = family.model_class in NECKED and family.needs_strides(backbone.module.config)
    return "pyramid" if one_stride and wanted and not cfg.out_features else "none"


def _refuse_backbone(kind: str, backbone: Backbone) -> None:
    strides = ", ".join(map(str, backbone.strides))
    several = len(set(backbone.strides)) > 1
    if kind in ONE_MAP and several:
        raise UserError(
            f"model.neck {kind}: makes maps of several strides of one, and {backbone.name} has them already "
            f"(strides {strides}); take model.neck fpn, or none"
        )
    if kind == "fpn" and not several:
        raise UserError(
            f"model.neck fpn: joins maps of several strides, and {backbone.name} gives {strides} px alone; take "
            "model.neck pyramid or cnn_branch for a vision transformer, or name more stages in "
            "model.out_features"
        )


def _strides_around(kind: str, stride: int, maps: int) -> tuple[int, ...]:
    """Half the stride, itself, then its double, and a quarter (or, if that is none, four times it)."""
    if maps > MOST_MAPS or stride % 2:
        raise UserError(
            f"model.neck {kind}: makes at most {MOST_MAPS} maps of one whose stride is even; the head wants {maps} "
            f"and the stride is {stride} px; change model.head_args, or take model.neck none"
        )
    fourth = stride // 4 if stride % 4 == 0 else 4 * stride
    return tuple(sorted((stride // 2, stride, 2 * stride, fourth)[:maps]))


def inner_backbone(module: nn.Module) -> nn.Module:
    """The pretrained backbone in what a head calls its backbone."""
    return cast(nn.Module, module.backbone) if isinstance(module, NeckedBackbone) else module


def neck_layers(module: nn.Module) -> nn.Module | None:
    """The neck in what a head calls its backbone, if it has one."""
    return cast(nn.Module, module.neck) if isinstance(module, NeckedBackbone) else None


def inner_config(config: Any) -> Any:
    """The pretrained backbone's part of a detector's config."""
    own = config.backbone_config
    return own.backbone_config if isinstance(own, NeckedBackboneConfig) else own


def plain_config(config: Any) -> Any:
    """The config of a saved detector with a neck as transformers' own class has it; others as they are."""
    plain = PLAIN.get(type(config))
    if plain is None:
        return config
    return cast(Any, plain).config_class.from_dict(_entries(config))


def as_saved(model: PreTrainedModel) -> PreTrainedModel:
    """A detector with a neck as a model of the class that brings its code along, with the same tensors;
    others as they are."""
    if not isinstance(model.config.backbone_config, NeckedBackboneConfig):
        return model
    kind = NECKED[cast(Any, type(model))]
    with torch.device("meta"), quiet_transformers():
        saved = kind(kind.config_class.from_dict(_entries(model.config)))
    saved.load_state_dict(model.state_dict(), strict=True, assign=True)
    return saved


def _entries(config: PretrainedConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {n: v for n, v in values.items() if n not in ("model_type", "auto_map", "architectures")}


def neck_kind(module: nn.Module) -> str:
    """model.neck of what a head calls its backbone, decided."""
    return str(module.config.kind) if isinstance(module, NeckedBackbone) else "none"
