"""Tiny detectors with a neck, and runs of them."""

import json
from pathlib import Path

import torch

from builders import TINY_HEAD, save_backbone, task_of, tiny_run
from data.taxonomy import Taxonomy
from model.build import build_model
from settings.keys import ImageSizeConfig, ModelConfig

VIT = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4},
    **{"num_attention_heads": 2, "num_register_tokens": 2, "image_size": 64},
}
TAXONOMY = Taxonomy(("a", "b", "c"), (0, 1, 2))
ARGS = {**TINY_HEAD, "deformable_detr": {**TINY_HEAD["deformable_detr"], "num_feature_levels": 4}}
"""head_args with which each head reads several maps"""
HEADS = ("deformable_detr", "rt_detr_v2", "d_fine", "deimv2", "mask2former", "maskformer")
BACKBONE = {"pyramid": "vit", "cnn_branch": "vit", "fpn": "convnext"}
"""Kind of tiny backbone that each neck is for"""
CHANNELS = 16
SIDE_PX = 128
"""Smaller images would leave one position of a map of stride 64, which group norm refuses"""
CASES = [f"{head}-{neck}" for head in HEADS for neck in BACKBONE]
RUN = [
    *(
        "deformable_detr-pyramid",
        "deformable_detr-cnn_branch",
        "d_fine-cnn_branch",
        "rt_detr_v2-fpn",
    ),
    *("mask2former-fpn", "maskformer-cnn_branch"),
]
"""Those of which whole runs are made; test_matrix.py makes one of every head with a pyramid"""
FAST = ["deformable_detr-cnn_branch", "rt_detr_v2-pyramid", "mask2former-fpn"]


def save_vit(folder: Path, **changes: object) -> Path:
    """A tiny DINOv3 vision transformer with random weights, saved as a checkpoint."""
    from transformers import DINOv3ViTBackbone, DINOv3ViTConfig

    torch.manual_seed(0)
    DINOv3ViTBackbone(DINOv3ViTConfig(**{**VIT, **changes})).save_pretrained(folder)
    settings = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def backbone_for(neck: str | None, root: Path) -> Path:
    """The folder of a tiny backbone that fits a neck, made once in `root`."""
    kind = BACKBONE.get(neck or "pyramid", "vit")
    folder = root / kind
    if folder.exists():
        return folder
    return save_vit(folder) if kind == "vit" else save_backbone(folder)


def config(case: str, root: Path, **changes: object) -> ModelConfig:
    """Of `head-neck`."""
    head, neck = case.split("-")
    values = {"head": head, "neck": neck, "head_args": ARGS[head], "neck_channels": CHANNELS}
    backbone = str(backbone_for(neck, root))
    return ModelConfig(**{"task": task_of(head), "backbone": backbone, **values, **changes})


def necked(case: str, root: Path, **changes: object):
    """The detector of `head-neck`, always the same."""
    torch.manual_seed(0)
    return build_model(config(case, root, **changes), TAXONOMY, ImageSizeConfig(SIDE_PX))


def necked_run(case: str, root: Path, **keys: object) -> list[str]:
    """Command line of a run of seconds."""
    head, neck = case.split("-")
    own = {
        "model__backbone": backbone_for(neck, root),
        "model__head_args": json.dumps(ARGS[head]),
        "model__neck": neck,
        "model__neck_channels": CHANNELS,
        "data__image_size__longest": SIDE_PX,
    }
    return tiny_run(root, head, **{**own, **keys})
