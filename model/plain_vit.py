"""Plain vision transformers (`vit`), of which transformers has no backbone class: as DINOv2's, which is the same
network with a factor after each part (LayerScale), here 1."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Dinov2Backbone, Dinov2Config, ViTConfig, ViTModel

from errors import UserError
from model.source import SAFE

FACTOR = "layer_scale"
"""Part of the names of tensors that a plain one does not have"""
RENAMED = {
    "layers.": "encoder.layer.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
}


def config_of(plain: ViTConfig) -> Dinov2Config:
    """The config of the network that computes the same.

    Raises:
        UserError: if there is none.
    """
    ratio, rest = divmod(plain.intermediate_size, plain.hidden_size)
    if rest:
        raise UserError(
            f"model.backbone: intermediate_size {plain.intermediate_size} is no multiple of hidden_size "
            f"{plain.hidden_size}, which is not supported for vit"
        )
    same = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "qkv_bias"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"),
        *("image_size", "patch_size", "num_channels", "initializer_range"),
    )
    arguments: dict[str, Any] = {name: getattr(plain, name) for name in same}
    return Dinov2Config(
        **arguments, mlp_ratio=ratio, layerscale_value=1.0, use_mask_token=False, drop_path_rate=0.0
    )


def load(
    folder: Path, config: Dinov2Config, out_features: list[str]
) -> tuple[nn.Module, list[str], list[str]]:
    """The backbone in fp32, the names of its tensors that the checkpoint lacks, and of its factors.

    Args:
        config: as `config_of` gives it.

    Raises:
        UserError: if tensors have another shape.
    """
    config.out_features = out_features
    kind: Any = ViTModel
    plain, info = kind.from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True, **SAFE
    )
    if info["mismatched_keys"]:
        raise UserError(
            f"model.backbone: tensors of another shape: {sorted(info['mismatched_keys'])[:3]}"
        )
    module = Dinov2Backbone(config)
    tensors = {_renamed(name): tensor for name, tensor in plain.state_dict().items()}
    factors = {name: value for name, value in module.state_dict().items() if FACTOR in name}
    module.load_state_dict({**tensors, **factors}, strict=True)
    return module, sorted(map(_renamed, info["missing_keys"])), sorted(factors)


def _renamed(name: str) -> str:
    for plain, ours in RENAMED.items():
        name = name.replace(plain, ours)
    return name
