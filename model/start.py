"""Where a detector's weights come from: a head from nothing on a pretrained backbone, a head of another detector
on it, or a whole pretrained detector whose class layers are made anew."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from data.canvas import CanvasRule
from data.taxonomy import Taxonomy
from errors import UserError, refusing
from model.backbone import (
    Backbone,
    fingerprint,
    fit_of,
    load_backbone,
    map_strides,
    tensor_digests,
    transplant,
    verify,
)
from model.heads.family import HeadFamily, refuse_unknown, refusing_arguments
from model.heads.held_norm import hold_norms
from model.heads.registry import HEADS, get_family
from model.neck import inner_backbone, plain_config, shown_backbone
from model.normalization import Normalization
from model.source import SAFE, local_folder, quiet_transformers
from settings.keys import Config, ModelConfig

KEY = "model.init_from"


@dataclass(frozen=True)
class Start:
    """A detector with its weights."""

    model: PreTrainedModel
    backbone: Backbone
    taken: int
    """Tensors of the head that are another detector's"""
    fresh: tuple[str, ...]
    """Names of trained tensors that are not, if any was taken"""
    strides: tuple[int, ...]
    """Of the maps that the head gets, px"""


def completed(cfg: Config) -> Config:
    """The configuration with what a whole pretrained detector says where it is silent (null): head, and size of
    images.

    Raises:
        UserError: if model.init_from is no detector that can be trained here, or contradicts the rest.
    """
    name = cfg.model.init_from
    if name is None or (cfg.model.head and cfg.model.backbone and cfg.data.image_size.longest):
        return cfg
    folder = local_folder(name, cfg.model.init_from_revision, KEY)
    model, data = cfg.model, cfg.data
    own = head_of(folder, name)
    kinds = [get_family(head).config_class for head in (model.head or own, own)]
    if model.backbone is None and kinds[0] is not kinds[1]:
        raise UserError(
            f"model.head {model.head}: {KEY} {name} has the head {own}; leave model.head out, or name a "
            "model.backbone for a new head"
        )
    head: Any = model.head or own
    model = dataclasses.replace(model, head=head)
    if data.image_size.longest is None:
        size = _image_size(folder, name)
        given = data.image_size
        size = dataclasses.replace(
            size, fit=given.fit or size.fit, shortest=given.shortest or size.shortest
        )
        data = dataclasses.replace(data, image_size=size)
    return dataclasses.replace(cfg, model=model, data=data)


def head_of(folder: Path, name: str) -> str:
    """Name of the head of a detector in a folder.

    Raises:
        UserError: if it is of a kind that cannot be trained here.
    """
    with refusing(f"{KEY} {name}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = type(plain_config(config))
    fitting = [head for head in HEADS if get_family(head).config_class is kind]
    named = config.architectures or ()
    own = [head for head in fitting if get_family(head).model_class.__name__ in named]
    if fitting:
        return (own or fitting)[0]
    backbone = type(config) in MODEL_FOR_BACKBONE_MAPPING
    hint = "; it is a backbone, which belongs into model.backbone" if backbone else ""
    raise UserError(
        f"{KEY} {name}: a model of the type {config.model_type!r} cannot be trained here; those that can: "
        f"{', '.join(HEADS)}{hint}"
    )


def _image_size(folder: Path, name: str) -> Any:
    file = folder / "preprocessor_config.json"
    try:
        return CanvasRule.of_processor(json.loads(file.read_text())).size
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{KEY} {name}: its image size cannot be told ({error}); set data.image_size.longest"
        ) from error


def start(cfg: ModelConfig, family: HeadFamily, taxonomy: Taxonomy) -> Start:
    """Build the detector and load its weights, each compared with the file that it is from.

    Raises:
        UserError: for anything wrong with backbone, detector or head_args.
    """
    if cfg.backbone is None:
        return _whole(cfg, family, taxonomy)
    maps = family.num_maps({**family.defaults, **cfg.head_args})
    backbone = load_backbone(cfg, maps)
    shown = shown_backbone(cfg, family, backbone, maps)
    read: Any = backbone.module.out_features  # a neck may read the last one alone
    backbone = dataclasses.replace(backbone, strides=backbone.strides[-len(read) :])
    config = head_config(family, cfg, shown, taxonomy)
    if cfg.init_from:
        folder = local_folder(cfg.init_from, cfg.init_from_revision, KEY)
        model, fresh = _from_detector(family, cfg.init_from, folder, config, whole=False)
    else:
        model, fresh = _from_scratch(family, config), None
    transplant(backbone, inner_backbone(family.backbone_of(model)))
    return _started(family, model, backbone, fresh, shown.strides)


def head_config(
    family: HeadFamily, cfg: ModelConfig, backbone: Backbone, taxonomy: Taxonomy
) -> PretrainedConfig:
    """The head's transformers config.

    Raises:
        UserError: naming the argument that does not exist or is refused.
    """
    args = _with_floats(family, {**family.defaults, **cfg.head_args})
    shared = {"backbone_config": backbone.module.config, **_classes(taxonomy)}
    kind: Any = family.config_class
    with refusing_arguments(), quiet_transformers():  # which backbones it knows is no news
        if family.make_config is not None:
            return family.make_config(args, shared, backbone)
        refuse_unknown(args, {field.name for field in dataclasses.fields(kind)}, kind.__name__)
        return kind(**shared, **args)


def _with_floats(family: HeadFamily, args: Mapping[str, Any]) -> dict[str, Any]:
    """The same with 4.0 for 4 where transformers takes nothing but a float."""
    fields: Any = dataclasses.fields(family.config_class)  # type: ignore[arg-type]
    reals = {field.name for field in fields if field.type in (float, "float")}
    return {n: float(v) if n in reals and type(v) is int else v for n, v in args.items()}


def _classes(taxonomy: Taxonomy) -> dict[str, Any]:
    return {"id2label": taxonomy.id2label, "label2id": taxonomy.label2id}


def _from_scratch(family: HeadFamily, config: PretrainedConfig) -> PreTrainedModel:
    with refusing("model.head_args: the head cannot be built"), quiet_transformers():
        model = family.model_class(config)
    family.initialise(model)
    return model


def _whole(cfg: ModelConfig, family: HeadFamily, taxonomy: Taxonomy) -> Start:
    """A pretrained detector with its own backbone."""
    assert cfg.init_from is not None
    where = f"{KEY} {cfg.init_from}"
    folder = local_folder(cfg.init_from, cfg.init_from_revision, KEY)
    with refusing(where), quiet_transformers():
        config: Any = plain_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if getattr(config, "use_timm_backbone", None) or _model_type(config) == "timm_backbone":
        raise UserError(
            f"{where}: its backbone is one of timm, which is not used here; take a detector with a backbone "
            "of transformers (facebook/detr-resnet-50: model.init_from_revision no_timm)"
        )
    with refusing_arguments():
        known = {field.name for field in dataclasses.fields(family.config_class)}  # type: ignore[arg-type]
        known -= {"backbone_config", *family.whole_args, *family.whole_refused}
        refuse_unknown(cfg.head_args, known, type(config).__name__)
        given = _with_floats(family, cfg.head_args)
        changed = {**family.whole_args, **given, **_classes(taxonomy)}
        config = type(config).from_dict({**config.to_dict(), **changed})
    model, fresh = _from_detector(family, cfg.init_from, folder, config, whole=True)
    shown = family.backbone_of(model)
    module = inner_backbone(shown)
    if lost := sorted(_backbone_names(family, model) & set(fresh)):
        raise UserError(
            f"{where}: {len(lost)} tensors of its backbone are missing; first: {lost[0]}"
        )
    normalization = Normalization.of_folder(folder)
    digests = tensor_digests(module)
    multiple = math.lcm(*family.side_multiples(config))
    backbone = Backbone(
        module=module,
        name=cfg.init_from,
        folder=folder,
        num_tensors=len(digests),
        identity_layers=0,
        fingerprint=fingerprint(digests, folder, normalization),
        normalization=normalization,
        strides=map_strides(module, multiple),
        fit=fit_of(module),
    )
    return _started(family, model, backbone, fresh, map_strides(shown, multiple))


def _model_type(config: Any) -> str | None:
    return getattr(getattr(config, "backbone_config", None), "model_type", None)


def _backbone_names(family: HeadFamily, model: PreTrainedModel) -> set[str]:
    """Names, in the model, of the tensors of its pretrained backbone."""
    module = inner_backbone(family.backbone_of(model))
    inside = {id(value) for value in (*module.parameters(), *module.buffers())}
    return {n for n, value in model.state_dict(keep_vars=True).items() if id(value) in inside}


def _from_detector(
    family: HeadFamily, name: str, folder: Path, config: PretrainedConfig, whole: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The detector with the weights of another one of its kind where shapes agree, and the names of the
    tensors that are not from there. Layers of other classes are not taken, even if there are as many.

    Args:
        whole: also its backbone, which has to be there; else it is of no account.
    """
    kind: Any = family.model_class
    try:
        with quiet_transformers():
            theirs = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model, info = kind.from_pretrained(
                folder,
                config=config,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
                **SAFE,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError) as error:
        raise UserError(f"{KEY} {name}: {' '.join(str(error).split())}") from error
    fresh = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    if whole and (lost := _lost(family, model, plain_config(theirs), info["missing_keys"])):
        raise UserError(
            f"{KEY} {name}: {len(lost)} tensors are missing in its file, or have other names there; first: {lost[0]}. "
            "They would be trained from nothing; get the checkpoint anew"
        )
    if theirs.id2label != config.id2label:
        fresh |= class_tensors(family, config)
    fresh = renewed(family, model, fresh)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{KEY} {name}: tensor {key} is not finite; its weights are broken")
    for key, parameter in _blank(family, config).named_parameters():
        if not parameter.requires_grad:  # from_pretrained forgets it
            model.get_parameter(key).requires_grad_(False)
    ignored = fresh if whole else fresh | _backbone_names(family, model)
    verify(tensor_digests(model), folder, ignore=ignored, where=f"{KEY} {name}", prefixes=0)
    return model, tuple(sorted(fresh))


def _lost(
    family: HeadFamily, model: PreTrainedModel, theirs: Any, missing: Collection[str]
) -> list[str]:
    """Names of missing tensors of the head that a detector has by its own configuration, classes left out."""
    kinds = [get_family(head) for head in HEADS if get_family(head).config_class is type(theirs)]
    named = [kind for kind in kinds if kind.model_class.__name__ in (theirs.architectures or ())]
    kind = named[0] if named else family
    its_own = set(_blank(kind, theirs).state_dict()) - class_tensors(kind, theirs)
    if kind is not family:  # one may lie in the other, as the detector of boxes in that of masks
        bare = {name.removeprefix("model.") for name in its_own}
        its_own |= {*bare, *(f"model.{name}" for name in its_own)}
    lost = its_own & set(missing) - _backbone_names(family, model)
    return sorted(name for name in lost if not name.endswith("num_batches_tracked"))


def class_tensors(family: HeadFamily, config: PretrainedConfig) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    names = {n: str(n) for n in range(len(config.id2label or {}) + 1)}
    changed = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    more = _blank(family, type(config).from_dict({**config.to_dict(), **changed})).state_dict()
    own = _blank(family, config).state_dict()
    return {name for name, value in own.items() if more[name].shape != value.shape}


def _blank(family: HeadFamily, config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights."""
    with torch.device("meta"), quiet_transformers():
        return family.model_class(config)


@torch.no_grad()
def renewed(family: HeadFamily, model: PreTrainedModel, fresh: Collection[str]) -> set[str]:
    """Give what is not taken its starting weights, and what belongs to the same modules; names of all of it."""
    names, inside = set(fresh), _backbone_names(family, model)
    for name, module in model.named_modules():
        own = {f"{name}.{tensor}" for tensor, _ in module.named_parameters(recurse=False)}
        if own & names - inside and hasattr(module, "reset_parameters"):
            module.reset_parameters()
            names |= own
    of_classes = class_tensors(family, model.config)
    if family.initialise_classes is not None and of_classes & names:
        family.initialise_classes(model)
        names |= of_classes
    return names


def _started(
    family: HeadFamily,
    model: PreTrainedModel,
    backbone: Backbone,
    fresh: tuple[str, ...] | None,
    strides: tuple[int, ...],
) -> Start:
    inside = _backbone_names(family, model)
    head = [name for name, _ in model.named_parameters() if name not in inside]
    if fresh is None:
        taken: list[str] = []
    else:
        taken = [name for name in head if name not in fresh]
        if not taken:
            raise UserError(
                f"{KEY}: no weight of this head agrees with it; give a backbone alone as model.backbone"
            )
    if family.holds_norms:
        known = set() if fresh is None else set(model.state_dict()) - set(fresh)
        hold_norms(model, family.backbone_of(model), known)
    new = [name for name in head if name not in taken] if taken else []
    return Start(model, backbone, len(taken), tuple(new), strides)
