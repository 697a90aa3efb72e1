"""DEIMv2 (Huang et al. 2025, https://arxiv.org/abs/2509.20787): D-FINE made smaller, on ConvNeXt-like
backbones and on DINOv3 vision transformers, to which it adds a small convolutional branch."""

from typing import Any

from transformers import Deimv2Config, Deimv2ForObjectDetection

from errors import UserError
from model.backbone import Backbone
from model.heads.family import HeadFamily
from model.heads.real_time import OF_ONE_SIZE, SHARED, maps_config, refuse_extra_layers
from model.losses.distribution import Bins
from model.losses.quality import matchability_aware
from model.losses.refined_criterion import RefinedCriterion, RefinedWeights

VIT = "dinov3_vit"


def num_maps(args: dict[str, Any]) -> int:
    """The lite encoder makes its second map itself."""
    return 1 if args.get("encoder_type") == "lite" else 3


def make_config(args: dict[str, Any], shared: dict[str, Any], backbone: Backbone) -> Deimv2Config:
    """The head's config.

    Raises:
        UserError: for arguments that transformers cannot save.
    """
    refuse_extra_layers(args)
    if args.get("share_bbox_head"):
        raise UserError(
            "model.head_args.share_bbox_head true: transformers loses the shared box head when the model is "
            "saved; leave it false"
        )
    return maps_config(Deimv2Config, args, shared, backbone, map_strides(backbone, args))


def map_strides(backbone: Backbone, args: dict[str, Any]) -> list[int]:
    """Strides of the maps that the encoder gives.

    Raises:
        UserError: for a number of maps that it cannot read.
    """
    strides = list(backbone.strides)
    lite = args.get("encoder_type") == "lite"
    of_vit = getattr(backbone.module.config, "model_type", None) == VIT
    wanted = 1 if lite else 3
    if (lite or of_vit) and len(strides) != wanted:
        raise UserError(
            f"model.out_features: deimv2 reads {wanted} map(s) here, and the backbone gives {len(strides)}"
        )
    if lite:
        return [strides[0], 2 * strides[0]]
    if of_vit:  # maps of one stride are resized, and a convolutional branch adds the detail
        return [strides[0] // 2, strides[0], strides[0] * 2]
    return strides


def criterion(config: Any) -> RefinedCriterion:
    """The paper's losses with the config's weights, without the union of the matches of all layers."""
    weights = RefinedWeights(
        config.weight_loss_mal,
        config.weight_loss_bbox,
        config.weight_loss_giou,
        config.weight_loss_fgl,
        config.weight_loss_ddf,
    )
    quality = matchability_aware(config.mal_alpha, config.focal_loss_gamma)
    bins = Bins(config.max_num_bins, config.reg_scale, config.up)
    return RefinedCriterion(quality, "loss_mal", weights, config, bins)


FAMILY = HeadFamily(
    config_class=Deimv2Config,
    model_class=Deimv2ForObjectDetection,
    defaults={"focal_loss_gamma": 1.5},  # as its authors train it
    num_maps=num_maps,
    needs_strides=lambda config: config.model_type != VIT,  # for that it has an adapter
    criterion=criterion,
    few_steps=80,
    few_steps_source="on eight synthetic scenes AP50 was above 0.9 after 80 steps",
    make_config=make_config,
    whole_args={**OF_ONE_SIZE, "share_bbox_head": False},
    **SHARED,
)
