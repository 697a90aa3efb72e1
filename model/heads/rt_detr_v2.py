"""RT-DETR v2 (Lv et al. 2024, https://arxiv.org/abs/2407.17140)."""

from typing import Any

from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

from model.backbone import Backbone
from model.heads.family import HeadFamily
from model.heads.real_time import OF_ONE_SIZE, SHARED, maps_config
from model.losses.quality import varifocal
from model.losses.refined_criterion import RefinedCriterion, RefinedWeights


def make_config(args: dict[str, Any], shared: dict[str, Any], backbone: Backbone) -> RTDetrV2Config:
    """The head's config; its sampling works on as many maps as there are."""
    config = maps_config(RTDetrV2Config, args, shared, backbone, backbone.strides)
    config.decoder_n_levels = config.num_feature_levels
    return config


def criterion(config: Any) -> RefinedCriterion:
    """The paper's losses with the config's weights."""
    weights = RefinedWeights(
        config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou
    )
    quality = varifocal(config.focal_loss_alpha, config.focal_loss_gamma)
    return RefinedCriterion(quality, "loss_vfl", weights, config)


FAMILY = HeadFamily(
    config_class=RTDetrV2Config,
    model_class=RTDetrV2ForObjectDetection,
    defaults={},
    num_maps=lambda args: 3,
    needs_strides=lambda config: True,
    criterion=criterion,
    few_steps=160,
    few_steps_source="on eight synthetic scenes AP50 was 0.5 after 80 steps",
    make_config=make_config,
    whole_args=OF_ONE_SIZE,
    **SHARED,
)
