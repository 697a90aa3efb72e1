"""A batch norm and one linear layer on a frozen backbone: the cheapest segmenter, and a yardstick of features.

As in the evaluation of DINOv2 and DINOv3 (https://arxiv.org/abs/2304.07193, https://arxiv.org/abs/2508.10104).
Their batch norm takes the statistics of each device's micro-batch; here they are those of some training
images, measured once before the first step, so that a step does not depend on how it is split.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import (
    SegformerImageProcessorPil,
)

from data.batch import Batch
from errors import UserError
from model.backbone import Backbone
from model.finding import Finder, find_pixel_classes
from model.heads.family import HeadFamily, refuse_unknown
from model.heads.linear_segmenter import LinearSegmenter, LinearSegmenterConfig
from model.losses.pixel_criterion import PixelCriterion

MOST_MAPS = 4
ARGUMENTS = ("num_maps",)

AutoConfig.register(LinearSegmenterConfig.model_type, LinearSegmenterConfig)
AutoModelForSemanticSegmentation.register(LinearSegmenterConfig, LinearSegmenter)


def num_maps(args: dict[str, Any]) -> int:
    """Number of the backbone's last maps that are read.

    Raises:
        UserError: if it is none.
    """
    number = args.get("num_maps", MOST_MAPS)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"model.head_args.num_maps {number}: must be a number of maps, 1 or more")
    return number


def make_config(
    args: dict[str, Any], shared: dict[str, Any], backbone: Backbone
) -> LinearSegmenterConfig:
    """The head's config.

    Raises:
        UserError: for an argument that it does not have, or a number of maps that the backbone does not give.
    """
    refuse_unknown(args, ARGUMENTS, "the linear head")
    if "num_maps" in args and args["num_maps"] != len(backbone.strides):
        given = ", ".join(shared["backbone_config"].out_features)
        raise UserError(
            f"model.head_args.num_maps {args['num_maps']}: the backbone gives {len(backbone.strides)} map(s), [{given}]; "
            "leave it out where model.out_features names the maps, else lower it"
        )
    return LinearSegmenterConfig(**shared)


@torch.no_grad()
def initialise(model: Any) -> None:
    """All classes alike at the start."""
    for classifier in model.classifiers:
        classifier.weight.zero_()
        if classifier.bias is not None:
            classifier.bias.zero_()


@torch.no_grad()
def prepare(model: Any, images: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Mean and variance of every channel of the backbone's maps, over all pixels of the images."""
    sums = [torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in model.norms]
    counts = [0] * len(sums)
    for pixel_values, _ in images:
        for place, feature_map in enumerate(model.backbone(pixel_values).feature_maps):
            values = feature_map.transpose(0, 1).flatten(1).double()
            sums[place] += torch.stack([values.sum(1), values.square().sum(1)]).cpu()
            counts[place] += values.shape[1]
    for norm, (total, squares), count in zip(model.norms, sums, counts, strict=True):
        mean = total / max(count, 1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((squares / max(count, 1) - mean.square()).clamp(min=0))


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> torch.Tensor:
    """Logits [B, C, h, w] of the classes."""
    return model(pixel_values).logits


def call(model: Any, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
    """The model's outputs, as its image processor's post-processing takes them."""
    return model(pixel_values)


FAMILY = HeadFamily(
    config_class=LinearSegmenterConfig,
    model_class=LinearSegmenter,
    processor_class=SegformerImageProcessorPil,
    defaults={},
    num_maps=num_maps,
    initialise=initialise,
    backbone_of=lambda model: model.backbone,
    num_queries=lambda config: config.num_labels,
    outputs=outputs,
    criterion=lambda config: PixelCriterion(),
    few_steps=20,
    few_steps_source="it begins with all classes alike",
    call=call,
    make_config=make_config,
    tasks={"semantic_segmentation": Finder(find_pixel_classes)},
    fit="stretch",
    prepare=prepare,
    of_pixels=True,
)
