"""From `cfg.model` to a detector with its backbone loaded, its loss and its image processor."""

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from data.feed.transforms import full_canvas, processor_size
from data.schema import Taxonomy
from errors import UserError
from model.backbone import Backbone, freeze, load_backbone
from model.heads.family import Head, build_detector
from model.losses.set_criterion import SetCriterion
from model.normalization import Normalization
from settings.keys import ImageSizeConfig, ModelConfig

PROBE_PX = 128

HEADS = {
    "detr": "model.heads.detr",
    "conditional_detr": "model.heads.conditional_detr",
    "deformable_detr": "model.heads.deformable_detr",
}
"""Module of each `model.head`; it has HEAD"""


@dataclass(frozen=True)
class Detector:
    """A detector ready to train."""

    model: PreTrainedModel
    head: Head
    backbone: Backbone
    criterion: SetCriterion
    head_origin: str
    unused: tuple[str, ...]
    """Parameters that these head_args and out_features never use; they are not trained"""

    @property
    def backbone_module(self) -> nn.Module:
        """The backbone inside the detector."""
        return self.backbone.module

    @property
    def num_queries(self) -> int:
        """Most objects that the head can find in an image."""
        config = self.model.config
        if getattr(config, "two_stage", False):
            return config.two_stage_num_proposals
        return config.num_queries


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
    watch_proposals(model, head, criterion)
    unused = without_gradient(model)
    for parameter in unused.values():
        parameter.requires_grad_(False)  # or DDP would wait for its gradient
    backbone = replace(
        backbone, module=module
    )  # the copy that was loaded first is not needed any more
    return Detector(model, head, backbone, criterion, origin, tuple(unused))


def watch_proposals(model: PreTrainedModel, head: Head, criterion: SetCriterion) -> None:
    """Hand the proposals of two-stage heads to the criterion; the loss seam does not get them."""

    def hand_over(module: nn.Module, inputs: Any, outputs: Any) -> None:
        criterion.proposals = head.proposals_of(outputs) if torch.is_grad_enabled() else None

    model.model.register_forward_hook(hand_over)


def without_gradient(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Trainable parameters that get no gradient, by name, found by one small step.

    Examples: level embeddings of a head without encoder; backbone stages behind the last one read.
    """
    box = {"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}
    was_training = model.training
    model.eval()
    try:
        model(pixel_values=torch.zeros(1, 3, PROBE_PX, PROBE_PX), labels=[box]).loss.backward()
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(
            "model.out_features and model.head_args do not fit each other: a first step on a blank "
            f"image fails with: {error}"
        ) from error
    model.train(was_training)
    unused = {n: p for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    model.zero_grad()
    return unused


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
