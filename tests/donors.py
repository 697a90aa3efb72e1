"""Whole tiny detectors on disk, to start from."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForObjectDetection, RfDetrConfig

from builders import REAL_TIME, TINY_HEAD, WHOLE_HEADS, save_backbone, some
from data.canvas import CanvasRule
from data.taxonomy import Taxonomy
from model.build import build_model, build_processor
from model.heads.registry import get_family
from model.normalization import Normalization
from settings.keys import Config, DataConfig, ImageSizeConfig, ModelConfig

ON_BACKBONES = ["detr", "conditional_detr", "deformable_detr", *REAL_TIME]
HEADS = [*ON_BACKBONES, "rf_detr"]
SOME = some(HEADS, ["detr", "deimv2", "rf_detr"])

DONOR_CLASSES = ("a", "b", "c")
OTHERS = ("x", "y")
FIRST_WEIGHT = "stages.0.downsample_layers.0.weight"
"""Of the donors' backbones"""
FIRST_PATCHES = "embeddings.patch_embeddings.projection.weight"
"""Of that of rf_detr"""
TINY_RF_DETR = {
    **{
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_ffn_dim": 32,
        "num_queries": 6,
        "group_detr": 3,
    },
    **{"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "dropout": 0.0},
    **{"c2f_num_blocks": 1, "decoder_n_points": 2, "intermediate_size": 32},
}
TINY_WINDOWS = {
    **{"model_type": "rf_detr_dinov2", "hidden_size": 16, "num_hidden_layers": 3},
    **{"num_attention_heads": 2, "image_size": 64, "patch_size": 8, "num_windows": 2},
    "out_features": ["stage1", "stage3"],
}
"""Its own backbone"""
SIDE_PX = 128
"""Longest side of the donors' images"""


def write_donor(folder: Path, head: str, **head_args: object) -> Path:
    """A detector with its image processor, whose batch norms have seen something."""
    if head in WHOLE_HEADS:
        return write_rf_detr(folder, head, **head_args)
    backbone = save_backbone(folder.parent / f"backbone of {folder.name}")
    arguments = {**TINY_HEAD[head], **head_args}
    cfg = ModelConfig(backbone=str(backbone), head=head, head_args=arguments)
    torch.manual_seed(0)
    detector = build_model(cfg, taxonomy(DONOR_CLASSES), ImageSizeConfig(SIDE_PX))
    inside = {id(m) for m in detector.backbone_module.modules()}
    for module in detector.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and id(module) not in inside:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    detector.model.save_pretrained(folder)
    detector.trainable.processor.save_pretrained(folder)
    return folder


def write_rf_detr(
    folder: Path, head: str, windows: dict | None = None, noise: float = 0.1, **head_args: object
) -> Path:
    """A whole RF-DETR, of boxes or of masks, with random weights, none of which are zero; without noise as it is drawn."""
    names = dict(enumerate(DONOR_CLASSES))
    classes = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    config = RfDetrConfig(
        backbone_config={**TINY_WINDOWS, **(windows or {})},
        **{**TINY_RF_DETR, **classes, **head_args},
    )
    torch.manual_seed(0)
    model = get_family(head).model_class(config)
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    rule = CanvasRule.fitted(ImageSizeConfig(SIDE_PX), 1, "stretch")
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    build_processor(get_family(head), rule, normalization).save_pretrained(folder)
    return folder


def taxonomy(names) -> Taxonomy:
    """Classes with these names."""
    return Taxonomy(tuple(names), tuple(range(len(names))))


def changed_copy(donor: Path, folder: Path, edit=None) -> Path:
    """A copy of a donor whose table of tensors `edit` has changed."""
    shutil.copytree(donor, folder)
    if edit is not None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def whole(folder: Path, head: str | None, **changes: object) -> ModelConfig:
    """To start from a donor."""
    return ModelConfig(**{"backbone": None, "head": head, "init_from": str(folder), **changes})


def start(folder: Path, head: str, names=OTHERS, **changes: object):
    """A detector of classes `names` that a donor is taken for."""
    torch.manual_seed(1)
    size = ImageSizeConfig(SIDE_PX)
    return build_model(whole(folder, head, **changes), taxonomy(names), size)


def config_of(model: ModelConfig, longest: int | None = None, **image_size: object) -> Config:
    """A configuration that leaves the image size to the donor."""
    size = ImageSizeConfig(longest, **image_size)
    return Config(model=model, data=DataConfig(image_size=size))


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """A donor's tensors as transformers loads them."""
    return AutoModelForObjectDetection.from_pretrained(folder).state_dict()


def in_file(folder: Path, tail: str) -> str:
    """Full name of a tensor in the file, where some are called otherwise than in the model."""
    return next(name for name in load_file(folder / "model.safetensors") if name.endswith(tail))


def inputs(detector, batch):
    """A batch's pixels as the model takes them."""
    return detector.trainable.normalization(batch.pixel_values, batch.pixel_mask)
