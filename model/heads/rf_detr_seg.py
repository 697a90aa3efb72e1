"""RF-DETR that finds masks (Robinson et al. 2025, https://arxiv.org/abs/2511.09554): the detector of `rf_detr`,
whose queries are multiplied with a map of the image. It is taken whole."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers import RfDetrForInstanceSegmentation

from data.batch import Batch
from model.finding import SIGMOID_MASKS
from model.heads import rf_detr
from model.losses.group_criterion import GroupCriterion
from model.losses.mask_criterion import MaskCriterion, MaskWeights
from model.losses.quality import iou_aware
from model.losses.set_criterion import SetOutputs
from model.losses.terms import fp32


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> SetOutputs:
    """Classes, boxes and masks of every decoder layer and of the chosen proposals, for the queries of all
    groups."""
    found, base = rf_detr.boxes_of(model.model, pixel_values, batch)
    height, width = (side // model.downsample_ratio for side in pixel_values.shape[-2:])
    pixels = F.interpolate(base.backbone_features, size=(height, width), mode="bilinear")
    of_proposals, maps = pixels, []
    for block in model.blocks:
        pixels = block(pixels)
        maps.append(model.spatial_features_proj(pixels))
    maps = [*maps[-len(found.logits) :], of_proposals]
    states = [*base.intermediate_hidden_states[-len(found.logits) :], base.enc_outputs_class]
    queries = [model.query_features_proj(model.query_features_block(own)) for own in states]

    def masks(layer: int, image: int, chosen: torch.Tensor | slice) -> torch.Tensor:
        own, places = fp32(queries[layer][image, chosen]), fp32(maps[layer][image])
        return torch.einsum("qc,chw->qhw", own, places) + model.segmentation_bias

    return dataclasses.replace(found, masks=masks)


def criterion(config: Any) -> GroupCriterion:
    """The losses of `rf_detr`, and cross-entropy and dice loss of all squares of the masks."""
    weights = MaskWeights(
        classes=0.0,  # the boxes' criterion has them
        mask=float(config.mask_class_loss_coefficient),
        dice=float(config.mask_dice_loss_coefficient),
        no_object=0.0,
    )
    masks = MaskCriterion(weights, config.num_queries, focal=False)
    return GroupCriterion(iou_aware(config.focal_alpha), config, masks)


def initialise_classes(model: Any) -> None:
    """As the detector's inside of it."""
    rf_detr.initialise_classes(model.model)


FAMILY = dataclasses.replace(
    rf_detr.FAMILY,
    model_class=RfDetrForInstanceSegmentation,
    initialise=initialise_classes,
    initialise_classes=initialise_classes,
    backbone_of=lambda model: model.model.model.backbone.backbone,
    outputs=outputs,
    criterion=criterion,
    tasks={"instance_segmentation": SIGMOID_MASKS},
)
