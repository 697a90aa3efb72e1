"""Conditional DETR (Meng et al. 2021, https://arxiv.org/abs/2108.06152)."""

import math

import torch
from torch import nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    PreTrainedModel,
)
from transformers.models.conditional_detr.image_processing_pil_conditional_detr import (
    ConditionalDetrImageProcessorPil,
)

from model.heads.family import Head

PRIOR_PROBABILITY = 0.01


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """The paper's starting weights: Xavier in the transformer, N(0, 1) queries, rare objects."""
    for part in (model.model.encoder, model.model.decoder):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.model.query_position_embeddings.weight)
    layers = (model.model.input_projection, *model.bbox_predictor.layers)
    for layer in (*layers, model.class_labels_classifier):
        layer.reset_parameters()
    model.class_labels_classifier.bias.fill_(-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    model.bbox_predictor.layers[-1].weight.zero_()
    model.bbox_predictor.layers[-1].bias.zero_()


HEAD = Head(
    config_class=ConditionalDetrConfig,
    model_class=ConditionalDetrForObjectDetection,
    processor_class=ConditionalDetrImageProcessorPil,
    defaults={"auxiliary_loss": True},
    focal=True,
    num_maps=lambda args: 1,
    initialise=initialise,
    backbone_of=lambda model: model.model.backbone.model,
    few_steps=10_000,
    few_steps_source="the paper trains 50 epochs of COCO, 370,000 steps of 16",
)
