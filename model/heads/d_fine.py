"""D-FINE (Peng et al. 2024, https://arxiv.org/abs/2410.13842)."""

from typing import Any

from transformers import DFineConfig, DFineForObjectDetection

from model.backbone import Backbone
from model.heads.family import HeadFamily
from model.heads.real_time import OF_ONE_SIZE, SHARED, maps_config, refuse_extra_layers
from model.losses.distribution import Bins
from model.losses.quality import varifocal
from model.losses.refined_criterion import RefinedCriterion, RefinedWeights


def make_config(args: dict[str, Any], shared: dict[str, Any], backbone: Backbone) -> DFineConfig:
    """The head's config."""
    refuse_extra_layers(args)
    return maps_config(DFineConfig, args, shared, backbone, backbone.strides)


def criterion(config: Any) -> RefinedCriterion:
    """The paper's losses with the config's weights."""
    weights = RefinedWeights(
        config.weight_loss_vfl,
        config.weight_loss_bbox,
        config.weight_loss_giou,
        config.weight_loss_fgl,
        config.weight_loss_ddf,
    )
    quality = varifocal(config.focal_loss_alpha, config.focal_loss_gamma)
    bins = Bins(config.max_num_bins, config.reg_scale, config.up)
    return RefinedCriterion(quality, "loss_vfl", weights, config, bins)


FAMILY = HeadFamily(
    config_class=DFineConfig,
    model_class=DFineForObjectDetection,
    defaults={},
    num_maps=lambda args: 3,
    needs_strides=lambda config: True,
    criterion=criterion,
    few_steps=80,
    few_steps_source="on eight synthetic scenes AP50 was above 0.9 after 80 steps",
    make_config=make_config,
    whole_args=OF_ONE_SIZE,
    **SHARED,
)
