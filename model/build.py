"""From `cfg.model` to a detector with its backbone loaded, its loss and its image processor."""

import importlib
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from config import ImageSizeConfig, ModelConfig
from data.schema import Taxonomy
from data.transforms import full_canvas, processor_size
from model.backbone import Backbone, freeze, load_backbone
from model.criterion import SetCriterion
from model.head import Head, build_detector
from model.normalization import Normalization

HEADS = {"detr": "model.detr", "deformable_detr": "model.deformable_detr"}
"""Module of each `model.head`; it has HEAD"""


@dataclass(frozen=True)
class Detector:
    """A detector ready to train."""

    model: PreTrainedModel
    head: Head
    backbone: Backbone
    criterion: SetCriterion
    head_origin: str

    @property
    def backbone_module(self) -> nn.Module:
        """The backbone inside the detector."""
        return self.backbone.module


def get_head(name: str) -> Head:
    """The head family of `model.head`."""
    return importlib.import_module(HEADS[name]).HEAD


def build_model(cfg: ModelConfig, taxonomy: Taxonomy) -> Detector:
    """Load the backbone, build the head around it, put our loss into it.

    Raises:
        UserError: for anything wrong with the backbone or the head's arguments.
    """
    head = get_head(cfg.head)
    backbone = load_backbone(cfg, head.num_maps({**head.defaults, **cfg.head_args}))
    model, origin = build_detector(head, cfg, backbone, taxonomy)
    module = head.backbone_of(model)
    if cfg.freeze == "all":
        freeze(module)
    else:
        module.requires_grad_(True)
    criterion = SetCriterion(model.config, focal=head.focal)
    model.loss_function = criterion
    backbone = replace(
        backbone, module=module
    )  # the copy that was loaded first is not needed any more
    return Detector(model, head, backbone, criterion, origin)


def build_processor(head: Head, size: ImageSizeConfig, normalization: Normalization) -> Any:
    """The transformers image processor that prepares images as training did."""
    return head.processor_class(
        size=processor_size(size),
        pad_size=dict(zip(("height", "width"), full_canvas(size), strict=True)),
        do_rescale=True,
        rescale_factor=normalization.scale,
        do_normalize=True,
        image_mean=list(normalization.mean),
        image_std=list(normalization.std),
    )
