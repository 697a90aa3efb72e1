"""What RT-DETR v2, D-FINE and DEIMv2 share: convolutional encoder, chosen proposals, denoising."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import inverse_sigmoid

from data.batch import Batch
from errors import UserError
from model.backbone import Backbone
from model.heads.family import refuse_unknown
from model.heads.held_norm import measure_norms
from model.losses.denoising import NoisyQueries, noisy_queries
from model.losses.refined_criterion import Predictions, RefinedOutputs

OF_THE_BACKBONE = {
    *("encoder_in_channels", "feat_strides", "decoder_in_channels", "encode_proj_layers"),
    *("backbone_config", "is_encoder_decoder"),
}
"""Arguments that follow from the backbone's maps"""
WHOLE_REFUSED = (*OF_THE_BACKBONE, "eval_idx", "num_feature_levels")
"""Arguments on which the shapes of a pretrained detector depend"""
OF_ONE_SIZE = {"eval_size": None, "anchor_image_size": None}
"""transformers leaves position embeddings out of evaluation where eval_size is set"""
PRIOR_PROBABILITY = 0.01
"""Score of every query at the start"""
AS_TRANSFORMERS_HAS_THEM = ("sampling_offsets", "attention_weights", "gateway.gate", "reg_conf")
"""Parts whose starting weights follow the papers"""


def maps_config(
    kind: Any,
    args: Mapping[str, Any],
    shared: Mapping[str, Any],
    backbone: Backbone,
    strides: Sequence[int],
) -> Any:
    """The config of a head over maps whose strides double.

    Args:
        kind: class of the config. strides: of the maps that its encoder gives, px.

    Raises:
        UserError: for an argument that it does not have, or maps that it cannot read.
    """
    known = {field.name for field in dataclasses.fields(kind)} - OF_THE_BACKBONE - {*OF_ONE_SIZE}
    refuse_unknown(args, known, kind.__name__)
    if any(2 * fine != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise UserError(
            f"model.out_features: {kind.model_type} reads maps whose strides double (8, 16, 32); those of this backbone "
            f"are {', '.join(map(str, strides))}. Name two or three stages that fit, set model.neck, or take deformable_detr"
        )
    levels = args.get("num_feature_levels", len(strides))
    if levels < len(strides):
        raise UserError(
            f"model.head_args.num_feature_levels {levels}: the head works on {len(strides)} maps"
        )
    hidden = args.get("encoder_hidden_dim", kind.encoder_hidden_dim)
    fixed: dict[str, Any] = {
        "encoder_in_channels": list(backbone.module.channels),  # type: ignore[arg-type]
        "feat_strides": list(strides),
        "decoder_in_channels": [hidden] * len(strides),
        "num_feature_levels": levels,
        "encode_proj_layers": [len(strides) - 1],
    }
    return kind(**shared, **{**args, **fixed, **OF_ONE_SIZE})


def refuse_extra_layers(args: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: for an eval_idx before the last layer, for which transformers adds layers.
    """
    index = args.get("eval_idx", -1)
    if index not in (-1, args.get("decoder_layers", 6) - 1):
        raise UserError(
            f"model.head_args.eval_idx {index}: transformers would add decoder layers that nothing trains; "
            "leave it out, and set decoder_layers"
        )


def level_strides(config: Any, strides: Sequence[int]) -> list[int]:
    """Strides of all maps that the decoder looks at; further levels halve the last one."""
    own = list(config.feat_strides)
    return [*own, *(own[-1] * 2**n for n in range(1, config.num_feature_levels - len(own) + 1))]


@torch.no_grad()
def initialise(model: Any) -> None:
    """torch's own starting weights, which the authors use, and theirs for the prediction layers.

    transformers draws everything from N(0, 0.01), which makes learning slow.
    """
    backbone = {id(module) for module in backbone_of(model).modules()}
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d)
        if plain and id(module) not in backbone and not _kept(name):
            module.reset_parameters()
    decoder = model.model.decoder
    initialise_classes(model)
    nn.init.xavier_uniform_(model.model.enc_output[0].weight)
    heads = [model.model.enc_bbox_head, *decoder.bbox_embed]
    if hasattr(decoder, "pre_bbox_head"):
        heads.append(decoder.pre_bbox_head)
    for head in heads:
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)


@torch.no_grad()
def initialise_classes(model: Any) -> None:
    """Those layers whose shape depends on the number of classes."""
    bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
    for layer in (model.model.enc_score_head, *model.model.decoder.class_embed):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    if hasattr(model.model, "denoising_class_embed"):
        embedding = model.model.denoising_class_embed
        nn.init.normal_(embedding.weight)
        embedding.weight[embedding.padding_idx].zero_()


def _kept(name: str) -> bool:
    return any(part in name for part in AS_TRANSFORMERS_HAS_THEM)


def backbone_of(model: Any) -> nn.Module:
    """The backbone inside of the model."""
    encoder = getattr(model.model, "conv_encoder", None) or model.model.backbone
    return encoder.backbone if hasattr(encoder, "backbone") else encoder.model


def outputs(
    model: Any, pixel_values: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
) -> RefinedOutputs:
    """Classes and boxes of every decoder layer and of the chosen proposals, also for noisy copies."""
    config, decoder = model.config, model.model.decoder
    noisy = None
    if config.num_denoising > 0:
        noisy = noisy_queries(batch, step_counts, config.num_labels, config)
    with _every_layer(decoder), _with_noisy_queries(model.model, noisy):
        base = model.model(pixel_values)
    logits = base.intermediate_logits.transpose(0, 1)  # [P, B, D + Q, C]
    boxes = base.intermediate_reference_points.transpose(0, 1)
    edges = references = None
    names: tuple[str, ...] = ()
    if getattr(base, "initial_reference_points", None) is not None:  # D-FINE and DEIMv2
        corners = base.intermediate_predicted_corners.transpose(0, 1)
        edges = corners.unflatten(-1, (4, -1))
        references = base.initial_reference_points[:, 0]
        boxes = boxes.clamp(0, 1)
        # First comes what the first layer predicts before edges refine it.
        logits, boxes = (torch.cat([t[1:], t[:1]]) for t in (logits, boxes))
        names = ("_pre",)
    first = 0 if noisy is None else noisy.num
    found = Predictions(logits, boxes, edges, references)
    queries = _of_queries(found, slice(first, None))
    proposals = (base.enc_topk_logits, base.enc_topk_bboxes)
    queries = dataclasses.replace(
        queries,
        logits=torch.cat([queries.logits, proposals[0][None]]),
        boxes=torch.cat([queries.boxes, proposals[1][None]]),
    )
    if noisy is None:
        return RefinedOutputs(queries, (*names, "_enc"))
    return RefinedOutputs(queries, (*names, "_enc"), _of_queries(found, slice(first)), names, noisy)


def _of_queries(found: Predictions, which: slice) -> Predictions:
    edges = None if found.edges is None else found.edges[:, :, which]
    references = None if found.references is None else found.references[:, which]
    return Predictions(found.logits[:, :, which], found.boxes[:, :, which], edges, references)


@contextlib.contextmanager
def _every_layer(decoder: Any) -> Iterator[None]:
    """Have the decoder predict after every layer, as it does in training; its parts stay as they are."""
    was_training = decoder.training
    decoder.training = True
    try:
        yield
    finally:
        decoder.training = was_training


@contextlib.contextmanager
def _with_noisy_queries(model: Any, noisy: NoisyQueries | None) -> Iterator[None]:
    """Have the decoder get noisy queries before its own."""
    if noisy is None:
        yield
        return

    def prepend(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own, points = kwargs["inputs_embeds"], kwargs["reference_points"]
        embedded = model.denoising_class_embed(noisy.classes).to(own.dtype)
        more = {
            "inputs_embeds": torch.cat([embedded, own], dim=1),
            "reference_points": torch.cat(
                [inverse_sigmoid(noisy.boxes.to(points.dtype)), points], dim=1
            ),
            "encoder_attention_mask": noisy.hidden(own.shape[1], own.dtype),
        }
        return args, {**kwargs, **more}

    handle = model.decoder.register_forward_pre_hook(prepend, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


SHARED: dict[str, Any] = {
    "processor_class": RTDetrImageProcessorPil,
    "initialise": initialise,
    "initialise_classes": initialise_classes,
    "backbone_of": backbone_of,
    "num_queries": lambda config: config.num_queries,
    "outputs": outputs,
    "fit": "stretch",
    "prepare": measure_norms,
    "holds_norms": True,
    "chooses_queries": True,
    "whole_refused": WHOLE_REFUSED,
    "level_strides": level_strides,
}
"""What is the same in all three families"""
