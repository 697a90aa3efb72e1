"""Deformable DETR (Zhu et al. 2021, https://arxiv.org/abs/2010.04159)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.image_processing_pil_deformable_detr import (
    DeformableDetrImageProcessorPil,
)
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

from data.batch import Batch
from model.heads.family import HeadFamily
from model.losses.set_criterion import SetCriterion, SetOutputs

PRIOR_PROBABILITY = 0.01
"""Score of every query at the start, so that the focal loss is not swamped by the background"""


@torch.no_grad()
def initialise(model: Any) -> None:
    """The paper's starting weights of the prediction layers, queries and projections.

    Those of deformable attention are transformers' own, which follow the paper.
    """
    config = model.config
    initialise_classes(model)
    for box_head in model.bbox_embed:
        for layer in box_head.layers:
            layer.reset_parameters()
        box_head.layers[-1].weight.zero_()
        box_head.layers[-1].bias.zero_()
    if not config.two_stage:
        model.bbox_embed[0].layers[-1].bias[2:] = -2.0  # small boxes first
        nn.init.normal_(model.model.query_position_embeddings.weight)
    for projection in model.model.input_proj:
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[0].bias)
    for part in (model.model.encoder, model.model.decoder):
        for name, parameter in part.layers.named_parameters():
            deformable = "sampling_offsets" in name or "attention_weights" in name
            if parameter.ndim > 1 and not deformable:
                nn.init.xavier_uniform_(parameter)


@torch.no_grad()
def initialise_classes(model: Any) -> None:
    """Few objects at the start."""
    for layer in model.class_embed:
        layer.reset_parameters()
        layer.bias.fill_(-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))


def num_maps(args: dict) -> int:
    """Levels beyond the backbone's maps come from stride-2 convolutions on the last map."""
    levels = args.get("num_feature_levels", DeformableDetrConfig.num_feature_levels)
    return 1 if levels == 1 else max(1, levels - 1)


def level_strides(config: Any, strides: Sequence[int]) -> list[int]:
    """Each further level halves the map before it."""
    further = config.num_feature_levels - len(strides)
    return [*strides, *(strides[-1] * 2**step for step in range(1, further + 1))]


def num_queries(config: Any) -> int:
    """Most objects that can be found in an image."""
    return config.two_stage_num_proposals if config.two_stage else config.num_queries


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> SetOutputs:
    """Classes and boxes of every decoder layer, and the proposals of the first of two stages.

    Each layer has prediction layers of its own, and its boxes are offsets from the layer before.
    """
    base = model.model(pixel_values, pixel_mask=batch.pixel_mask)
    states = base.intermediate_hidden_states  # [B, L, Q, d]
    references = [base.init_reference_points, *base.intermediate_reference_points.unbind(1)]
    logits, boxes = [], []
    for layer in range(states.shape[1]):
        logits.append(model.class_embed[layer](states[:, layer]))
        offsets = model.bbox_embed[layer](states[:, layer])
        reference = inverse_sigmoid(references[layer])  # [B, Q, 2 or 4]
        if reference.shape[-1] == 4:
            offsets = offsets + reference  # not in place: under autocast the sum is in fp32
        else:
            offsets[..., :2] += reference
        boxes.append(offsets.sigmoid())
    first = 0 if model.config.auxiliary_loss else len(boxes) - 1
    proposals = None
    if base.enc_outputs_class is not None:  # transformers gives these no loss
        proposals = (base.enc_outputs_class, base.enc_outputs_coord_logits.sigmoid())
    return SetOutputs(torch.stack(logits[first:]), torch.stack(boxes[first:]), proposals)


FAMILY = HeadFamily(
    config_class=DeformableDetrConfig,
    model_class=DeformableDetrForObjectDetection,
    processor_class=DeformableDetrImageProcessorPil,
    defaults={"auxiliary_loss": True, "with_box_refine": True},
    num_maps=num_maps,
    initialise=initialise,
    initialise_classes=initialise_classes,
    whole_args={"auxiliary_loss": True},
    backbone_of=lambda model: model.model.backbone.model,
    num_queries=num_queries,
    outputs=outputs,
    criterion=lambda config: SetCriterion(config, focal=True, num_queries=num_queries(config)),
    level_strides=level_strides,
    few_steps=300,
    few_steps_source="on synthetic scenes AP50 was below 0.6 after 200 steps and above 0.9 after 500",
)
