"""Conditional DETR (Meng et al. 2021, https://arxiv.org/abs/2108.06152)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection
from transformers.models.conditional_detr.image_processing_pil_conditional_detr import (
    ConditionalDetrImageProcessorPil,
)
from transformers.models.conditional_detr.modeling_conditional_detr import inverse_sigmoid

from data.batch import Batch
from model.heads.detr import decoder_states
from model.heads.family import HeadFamily
from model.losses.set_criterion import SetCriterion, SetOutputs

PRIOR_PROBABILITY = 0.01


@torch.no_grad()
def initialise(model: Any) -> None:
    """The paper's starting weights: Xavier in the transformer, N(0, 1) queries, rare objects."""
    for part in (model.model.encoder, model.model.decoder):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.model.query_position_embeddings.weight)
    layers = (model.model.input_projection, *model.bbox_predictor.layers)
    for layer in layers:
        layer.reset_parameters()
    initialise_classes(model)
    model.bbox_predictor.layers[-1].weight.zero_()
    model.bbox_predictor.layers[-1].bias.zero_()


@torch.no_grad()
def initialise_classes(model: Any) -> None:
    """Few objects at the start."""
    model.class_labels_classifier.reset_parameters()
    model.class_labels_classifier.bias.fill_(-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> SetOutputs:
    """Classes and boxes of every decoder layer; boxes are offsets from the reference points."""
    base = model.model(pixel_values, pixel_mask=batch.pixel_mask)
    reference = inverse_sigmoid(base.reference_points).transpose(0, 1)  # [B, Q, 2]
    states, boxes = decoder_states(model.config, base), []
    for layer in states:
        offsets = model.bbox_predictor(layer)
        offsets[..., :2] += reference
        boxes.append(offsets.sigmoid())
    return SetOutputs(model.class_labels_classifier(states), torch.stack(boxes))


FAMILY = HeadFamily(
    config_class=ConditionalDetrConfig,
    model_class=ConditionalDetrForObjectDetection,
    processor_class=ConditionalDetrImageProcessorPil,
    defaults={"auxiliary_loss": True},
    num_maps=lambda args: 1,
    initialise=initialise,
    initialise_classes=initialise_classes,
    whole_args={"auxiliary_loss": True},
    backbone_of=lambda model: model.model.backbone.model,
    num_queries=lambda config: config.num_queries,
    outputs=outputs,
    criterion=lambda config: SetCriterion(config, focal=True, num_queries=config.num_queries),
    few_steps=10_000,
    few_steps_source="the paper trains 50 epochs of COCO, 370,000 steps of 16",
)
