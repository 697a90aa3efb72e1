"""From `cfg.model` to a detector with its backbone loaded, its losses and its image processor."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from data.batch import Batch
from data.canvas import CanvasRule, side_multiple
from data.masks import CELL_PIXELS, CELL_PX
from data.objects import Objects
from data.taxonomy import Taxonomy
from errors import UserError
from model.backbone import Backbone
from model.folding import fold
from model.heads.family import HeadFamily
from model.heads.held_norm import hold_norms
from model.heads.registry import HEADS, get_family
from model.neck import inner_backbone, neck_kind, neck_layers
from model.normalization import Normalization
from model.stages import freeze, train_from
from model.start import start
from model.trainable import STUFF_KEY, Trainable
from settings.checks import whole_head_problem
from settings.image_keys import Fit
from settings.keys import FROZEN_STAGES, ImageSizeConfig, ModelConfig


@dataclass(frozen=True)
class Detector:
    """A detector ready to train, and where its parts come from."""

    trainable: Trainable
    family: HeadFamily
    backbone: Backbone
    rule: CanvasRule
    strides: tuple[int, ...]
    """Of the maps that the head gets, px"""
    taken: int
    """Tensors of the head that are another detector's"""
    fresh: tuple[str, ...]
    """Names of trained tensors of the head that are not, if some are"""
    unused: tuple[str, ...]
    """Parameters that these head_args and out_features never use; they are not trained"""

    @property
    def model(self) -> Any:
        """The transformers model, by whose names weights are saved."""
        return self.trainable.model

    @property
    def backbone_module(self) -> nn.Module:
        """The backbone inside the detector."""
        return self.backbone.module

    @property
    def neck_module(self) -> nn.Module | None:
        """The neck between backbone and head, if there is one."""
        return neck_layers(self.family.backbone_of(self.model))

    @property
    def neck(self) -> str:
        """model.neck, decided."""
        return neck_kind(self.family.backbone_of(self.model))

    @property
    def num_queries(self) -> int:
        """Most objects that the head can find in an image."""
        return self.family.num_queries(self.model.config)


TASK_KEY = "segmentation_task"
"""Entry of an exported model's config.json: the model.task that it was trained for"""


def build_model(
    cfg: ModelConfig, taxonomy: Taxonomy, image_size: ImageSizeConfig | None = None
) -> Detector:
    """Load the backbone, build the head around it, and put both into a `Trainable`.

    Raises:
        UserError: for anything wrong with the backbone or the head's arguments.
    """
    assert cfg.head is not None
    family = get_family(cfg.head)
    size = image_size or ImageSizeConfig()
    refuse_contradictions(cfg, family, size)
    begun = start(cfg, family, taxonomy)
    model: Any = begun.model
    backbone = begun.backbone
    module = inner_backbone(family.backbone_of(model))
    sides = family.side_multiples(model.config)
    if cfg.freeze == "all":
        freeze(module)
        fold(module)
    else:
        train_from(module, number_of_frozen(cfg.freeze), math.lcm(*sides))
        hold_norms(module)
    cells = [] if cfg.task == "detection" else [CELL_PX]
    strides = family.level_strides(model.config, begun.strides)
    multiple = side_multiple([*strides, *backbone.strides, *cells, *sides])
    rule = CanvasRule.fitted(size, multiple, _fit(family, backbone, size))
    processor = build_processor(family, rule, backbone.normalization)
    if cfg.task != "detection":
        setattr(model.config, TASK_KEY, cfg.task)  # whoever loads the export has to know
    if cfg.task == "panoptic_segmentation":
        setattr(model.config, STUFF_KEY, list(taxonomy.stuff))
    trainable = Trainable(model, processor, backbone.normalization, family, cfg.task)
    side = family.smallest_side(model.config, begun.strides, multiple)
    if not family.has_places(model.config, begun.strides, rule.full[0]):
        raise UserError(
            f"model.head_args.num_queries {family.num_queries(model.config)}: images of {rule.full[0]} px have "
            f"fewer places to choose them from; data.image_size.longest {side} has enough"
        )
    unused = without_gradient(trainable, side)
    for parameter in unused.values():
        parameter.requires_grad_(False)  # or DDP would wait for its gradient
    backbone = replace(
        backbone, module=module
    )  # the copy that was loaded first is not needed any more
    return Detector(
        trainable=trainable,
        family=family,
        backbone=backbone,
        rule=rule,
        strides=begun.strides,
        taken=begun.taken,
        fresh=begun.fresh,
        unused=tuple(unused),
    )


def refuse_contradictions(cfg: ModelConfig, family: HeadFamily, size: ImageSizeConfig) -> None:
    """
    Raises:
        UserError: if the head is for another task or has a backbone of its own, or cannot have images
            fitted as configured.
    """
    if problem := whole_head_problem(cfg):
        raise UserError(problem)
    if cfg.task not in family.tasks:
        fitting = [name for name in HEADS if cfg.task in get_family(name).tasks]
        own = " or ".join(family.tasks)
        raise UserError(
            f"model.head {cfg.head} is for {own}, model.task is {cfg.task}; set model.task {own}, or "
            f"model.head {' or '.join(fitting)}"
        )
    if family.fit == "stretch" and size.fit == "pad":
        raise UserError(
            f"data.image_size.fit pad: {cfg.head} takes padding for a part of the image; leave the key out, or "
            "set stretch"
        )


def _fit(family: HeadFamily, backbone: Backbone, size: ImageSizeConfig) -> Fit:
    """The data.image_size.fit.

    Raises:
        UserError: if it contradicts the rest of data.image_size.
    """
    needs: Fit = "stretch" if "stretch" in (family.fit, backbone.fit) else "pad"
    fit = size.fit or needs
    if fit == "stretch" and size.shortest is not None:
        kind = "" if size.fit or family.fit == fit else f" for the backbone {backbone.name}"
        raise UserError(
            f"data.image_size.shortest {size.shortest}: images are stretched{kind} to a square of "
            f"data.image_size.longest {size.longest_px}; leave it out"
        )
    return fit


def number_of_frozen(freeze: str) -> int:
    """Number of the first stages that model.freeze keeps, if it is not all."""
    return 0 if freeze == "none" else int(freeze.removeprefix(FROZEN_STAGES))


def without_gradient(trainable: Trainable, side: int) -> dict[str, nn.Parameter]:
    """Trainable parameters of the model that get no gradient, by name, found by one small step.

    Args:
        side: of the image, px.

    Examples: level embeddings of a head without encoder; backbone stages behind the last one read.
    """
    first, box = torch.zeros(1, dtype=torch.int64), torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    cells = side // CELL_PX
    mask = torch.full((1, cells, cells), CELL_PIXELS, dtype=torch.uint8)
    batch = Batch(
        pixel_values=torch.zeros(1, 3, side, side, dtype=torch.uint8),
        pixel_mask=torch.ones(1, side, side, dtype=torch.bool),
        objects=Objects(image=first, boxes=box, classes=first, masks=mask),
        num_objects=[1],
        noise_keys=[0],
    )
    was_training = trainable.training
    trainable.eval()
    try:
        trainable(batch, trainable.counts(batch).alone).total.backward()
    except Exception as error:  # whatever the head's modules run into
        raise UserError(
            "model.out_features and model.head_args do not fit each other: a first step on a blank "
            f"image fails with: {error}"
        ) from error
    trainable.train(was_training)
    model = trainable.model
    unused = {n: p for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    model.zero_grad()
    return unused


def build_processor(family: HeadFamily, rule: CanvasRule, normalization: Normalization) -> Any:
    """The transformers image processor that prepares images as training did."""
    return family.processor_class(
        **rule.processor_settings(),
        do_rescale=True,
        rescale_factor=normalization.scale,
        do_normalize=True,
        image_mean=list(normalization.mean),
        image_std=list(normalization.std),
    )
