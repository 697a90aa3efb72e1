"""A plain mask decoder for frozen vision transformers, after PMT (https://arxiv.org/abs/2603.25398)."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
)

from data.batch import Batch
from model.backbone import Backbone
from model.finding import mask_tasks
from model.heads.family import HeadFamily, refuse_unknown
from model.heads.maskformer import call
from model.heads.pmd_segmenter import WHOLE, PlainMaskConfig, PlainMaskDecoder
from model.losses.mask_criterion import MaskCriterion, MaskOutputs, MaskWeights

ARGUMENTS = set(inspect.signature(PlainMaskConfig).parameters) - {
    *("backbone_config", "strides", "kwargs")
}
WEIGHTS = MaskWeights(classes=2.0, mask=5.0, dice=5.0, no_object=0.1)
"""Those of Mask2Former and EoMT"""

AutoConfig.register(PlainMaskConfig.model_type, PlainMaskConfig)
for auto_class in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):
    auto_class.register(PlainMaskConfig, PlainMaskDecoder)


def make_config(
    args: dict[str, Any], shared: dict[str, Any], backbone: Backbone
) -> PlainMaskConfig:
    """The head's config.

    Raises:
        ValueError: for sizes that do not fit each other.
        UserError: for an argument that it does not have.
    """
    refuse_unknown(args, ARGUMENTS, "the pmd head")
    config = PlainMaskConfig(**shared, strides=list(backbone.strides), **args)
    for name in ARGUMENTS:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} {value}: must be a number, 1 or more")
    if config.hidden_size % (2 * config.num_heads):
        raise ValueError(
            f"hidden_size {config.hidden_size}: must be a multiple of twice num_heads {config.num_heads}"
        )
    return config


@torch.no_grad()
def initialise(model: Any) -> None:
    """N(0, 1) queries, so that they differ at the start; Xavier in the blocks."""
    for module in (model.blocks, model.laterals, model.embed):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.queries)
    model.progress.zero_()


def anneal(model: Any, part: float) -> None:
    """Say how much of training is done, from 0 to 1."""
    model.progress.fill_(round(part * WHOLE))


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> MaskOutputs:
    """Classes and masks before the first and after every block."""
    found = model(pixel_values, every_layer=True)
    embeddings, pixels = found.all_embeddings, found.all_pixels

    def masks(layer: int, image: int, queries: torch.Tensor | slice) -> torch.Tensor:
        own = embeddings[layer][image, queries].to(pixels[layer].dtype)
        return (own @ pixels[layer][image].flatten(1)).unflatten(1, pixels[layer].shape[-2:])

    return MaskOutputs(torch.stack(found.all_classes), masks)


FAMILY = HeadFamily(
    config_class=PlainMaskConfig,
    model_class=PlainMaskDecoder,
    processor_class=MaskFormerImageProcessorPil,
    defaults={},
    num_maps=lambda args: 4,
    initialise=initialise,
    backbone_of=lambda model: model.backbone,
    num_queries=lambda config: config.num_queries,
    outputs=outputs,
    criterion=lambda config: MaskCriterion(WEIGHTS, config.num_queries, focal=False),
    few_steps=150,
    few_steps_source="like the other mask heads, which need some hundred steps",
    call=call,
    make_config=make_config,
    tasks=mask_tasks(),
    fit="stretch",
    anneal=anneal,
)
