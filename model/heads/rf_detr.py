"""RF-DETR (Robinson et al. 2025, https://arxiv.org/abs/2511.09554): LW-DETR on a DINOv2 whose attention is
held inside of windows. It is taken whole, with the backbone that is its own."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import RfDetrConfig, RfDetrForObjectDetection
from transformers.models.rf_detr.modeling_rf_detr import RfDetrAttention
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from data.batch import Batch
from model.heads.family import HeadFamily
from model.losses.group_criterion import GroupCriterion
from model.losses.quality import iou_aware
from model.losses.set_criterion import SetOutputs

PRIOR_PROBABILITY = 0.01
"""Score of every query at the start"""


@torch.no_grad()
def initialise_classes(model: Any) -> None:
    """Few objects at the start; the proposals of every group begin with the classes of the queries."""
    layer = model.class_embed
    layer.reset_parameters()
    layer.bias.fill_(-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    for other in model.model.enc_out_class_embed:
        other.load_state_dict(layer.state_dict())


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> SetOutputs:
    """Classes and boxes of every decoder layer and of the chosen proposals."""
    return boxes_of(model, pixel_values, batch)[0]


def boxes_of(model: Any, pixel_values: torch.Tensor, batch: Batch) -> tuple[SetOutputs, Any]:
    """Classes and boxes for the queries of all groups, group by group, and what the model's inner part gave."""
    with _every_group(model):
        base = model.model(pixel_values, pixel_mask=batch.pixel_mask)
        proposed = model.predict_encoder_class_logits(base.enc_outputs_class)
    logits, boxes = model.predict_class_and_boxes(
        base.intermediate_hidden_states, base.intermediate_reference_points
    )  # [L, B, G Q, ...]; the reference of all layers is the same
    first = 0 if model.config.auxiliary_loss else len(logits) - 1
    # What transformers calls logits of coordinates are boxes.
    proposals = (proposed, base.enc_outputs_coord_logits)
    return SetOutputs(logits[first:], boxes[first:], proposals), base


@contextlib.contextmanager
def _every_group(model: Any) -> Iterator[None]:
    """Have the model use the queries of all groups, as it does in training; its other parts stay as they are."""
    attentions = [m for m in model.modules() if isinstance(m, RfDetrAttention)]
    if any(module.training for module in attentions):
        yield
        return
    kept = [module.attention_dropout for module in attentions]
    chosen = (model, model.model, *attentions)
    for module in chosen:
        module.training = True
    for module in attentions:
        module.attention_dropout = 0.0
    try:
        yield
    finally:
        for module in chosen:
            module.training = False
        for module, dropout in zip(attentions, kept, strict=True):
            module.attention_dropout = dropout


def criterion(config: Any) -> GroupCriterion:
    """LW-DETR's losses with the config's weights."""
    return GroupCriterion(iou_aware(config.focal_alpha), config)


def level_strides(config: Any, strides: Sequence[int]) -> list[int]:
    """All maps that are read become one, of the stride of the patches."""
    return [config.backbone_config.patch_size]


def side_multiples(config: Any) -> list[int]:
    """Every window has as many patches."""
    backbone = config.backbone_config
    return [backbone.patch_size * backbone.num_windows]


FAMILY = HeadFamily(
    config_class=RfDetrConfig,
    model_class=RfDetrForObjectDetection,
    processor_class=RTDetrImageProcessorPil,  # RF-DETR's own needs torchvision; this one finds the same
    defaults={},
    num_maps=lambda args: 1,
    initialise=initialise_classes,
    initialise_classes=initialise_classes,
    backbone_of=lambda model: model.model.backbone.backbone,
    num_queries=lambda config: config.num_queries,
    outputs=outputs,
    criterion=criterion,
    few_steps=0,
    few_steps_source="it never begins with nothing",
    fit="stretch",
    chooses_queries=True,
    whole_refused=("group_detr", "num_queries", "num_feature_levels"),
    level_strides=level_strides,
    side_multiples=side_multiples,
)
