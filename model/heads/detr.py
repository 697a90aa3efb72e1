"""DETR (Carion et al. 2020, https://arxiv.org/abs/2005.12872)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from data.batch import Batch
from model.heads.family import HeadFamily
from model.losses.set_criterion import SetCriterion, SetOutputs


def initialise(model: Any) -> None:
    """The paper's starting weights: Xavier in the transformer, N(0, 1) queries.

    transformers draws everything from N(0, 0.02), which makes all queries nearly equal at the start
    and learning very slow.
    """
    for part in (model.model.encoder, model.model.decoder):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.model.query_position_embeddings.weight)
    linears = (model.class_labels_classifier, *model.bbox_predictor.layers)
    for layer in (model.model.input_projection, *linears):
        layer.reset_parameters()


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> SetOutputs:
    """Classes and boxes of every decoder layer; of the last alone without auxiliary losses."""
    base = model.model(pixel_values, pixel_mask=batch.pixel_mask)
    states = decoder_states(model.config, base)
    return SetOutputs(model.class_labels_classifier(states), model.bbox_predictor(states).sigmoid())


def decoder_states(config: Any, base: Any) -> torch.Tensor:
    """[L, B, Q, d] of the layers that get a loss."""
    return (
        base.intermediate_hidden_states if config.auxiliary_loss else base.last_hidden_state[None]
    )


FAMILY = HeadFamily(
    config_class=DetrConfig,
    model_class=DetrForObjectDetection,
    processor_class=DetrImageProcessorPil,
    defaults={"auxiliary_loss": True},
    num_maps=lambda args: 1,
    initialise=initialise,
    whole_args={"auxiliary_loss": True},
    backbone_of=lambda model: model.model.backbone.model,
    num_queries=lambda config: config.num_queries,
    outputs=outputs,
    criterion=lambda config: SetCriterion(config, focal=False, num_queries=config.num_queries),
    few_steps=30_000,
    few_steps_source="about 300,000 steps at lr 1e-4 on COCO, facebookresearch/detr#22",
)
