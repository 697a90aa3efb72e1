"""Tiny backbones of every kind, with random weights, saved as checkpoints."""

import json
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from builders import TINY_HEAD, task_of
from data.taxonomy import Taxonomy
from model.build import build_model
from settings.keys import ImageSizeConfig, ModelConfig

LAYERED = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 56,
}
STAGED = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SWIN = {
    **{"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    **{"window_size": 4, "image_size": 64},
}
PLAIN = {
    **{name: value for name, value in LAYERED.items() if name != "mlp_ratio"},
    **{"patch_size": 16, "intermediate_size": 64},
}
KINDS = {
    "dinov3_convnext": ("DINOv3ConvNextConfig", STAGED),
    "dinov3_vit": (
        "DINOv3ViTConfig",
        {**PLAIN, "pos_embed_rescale": 2.0, "num_register_tokens": 2},
    ),
    "dinov2": ("Dinov2Config", {**LAYERED, "patch_size": 14, "layerscale_value": 0.5}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        {**LAYERED, "patch_size": 14, "layerscale_value": 0.5, "num_register_tokens": 2},
    ),
    "vit": ("ViTConfig", PLAIN),
    "vitdet": (
        "VitDetConfig",
        {
            **LAYERED,
            **{"window_block_indices": [0, 2], "window_size": 3, "patch_size": 16},
            **{
                "use_relative_position_embeddings": True,
                "pretrain_image_size": 64,
                "image_size": 64,
            },
        },
    ),
    "convnext": ("ConvNextConfig", {**STAGED, "layer_scale_init_value": 0.5}),
    "convnextv2": ("ConvNextV2Config", STAGED),
    "resnet": ("ResNetConfig", {**STAGED, "embedding_size": 8, "layer_type": "basic"}),
    "swin": ("SwinConfig", SWIN),
    "swinv2": ("Swinv2Config", SWIN),
    "pvt_v2": (
        "PvtV2Config",
        {**STAGED, "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [1, 1, 1, 1]},
    ),
    "hgnet_v2": (
        "HGNetV2Config",
        {
            **{"stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16]},
            **{"stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [8, 16, 16, 32]},
            **{"stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1]},
            **STAGED,
        },
    ),
}
"""Name of the config class and its arguments, by model type"""
FLAT = ["dinov3_vit", "dinov2", "dinov2_with_registers", "vit", "vitdet"]
"""Plain vision transformers: all of their maps have one stride"""


def write_backbone(folder: Path, kind: str) -> Path:
    """A checkpoint whose tensors are all different from each other, batch norms' statistics included."""
    name, arguments = KINDS[kind]
    config = getattr(transformers, name)(**arguments)
    torch.manual_seed(0)
    if kind == "vit":
        model = transformers.ViTModel(config)  # with a pooler, as the Hub's have
    else:
        model = MODEL_FOR_BACKBONE_MAPPING[type(config)](config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    for name in [name for name in model.state_dict() if "hidden_states_norms" in name]:
        model.get_parameter(name).data.fill_(1.0 if name.endswith("weight") else 0.0)
    model.save_pretrained(folder)
    settings = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


PARTLY_FROZEN = {"resnet partly frozen": "resnet", "dinov3_vit partly frozen": "dinov3_vit"}
"""Kinds of backbones whose training has something to go wrong: batch norm, noise on positions"""


def detector_on(folder: Path, kind: str, head: str = "deformable_detr", freeze: str = "stages:2"):
    """A detector of three classes on a backbone of this kind, always the same."""
    if not folder.exists():
        write_backbone(folder, kind)
    cfg = ModelConfig(
        task_of(head), str(folder), freeze=freeze, head=head, head_args=TINY_HEAD[head]
    )
    torch.manual_seed(0)
    return build_model(cfg, Taxonomy(("a", "b", "c"), (0, 1, 2)), ImageSizeConfig(64))
