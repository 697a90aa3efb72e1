"""Pretrained backbones: loaded, compared with their checkpoint tensor by tensor, frozen.

transformers builds a detector's backbone from its configuration alone, with random weights. Here
the weights are loaded explicitly, and a tensor that does not equal the checkpoint's stops the run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, ViTConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from data.canvas import round_up
from errors import UserError, refusing
from model import plain_vit
from model.normalization import Normalization
from model.source import SAFE, is_local_folder, local_folder, quiet_transformers
from model.stages import PROBE_PX
from settings.image_keys import Fit
from settings.keys import ModelConfig

OF_THE_FILE = {
    *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"),
    *("out_features", "out_indices", "id2label", "label2id"),
}
"""Entries of a config that say nothing about what the backbone computes here"""
FUSED = ("in_proj_weight", "in_proj_bias")
"""Ends of the names of tensors that transformers may split in three on loading"""
LOCAL = {
    *("bit", "convnext", "dinov3_convnext", "hgnet_v2", "maskformer-swin", "resnet"),
    *("rt_detr_resnet", "swin", "swinv2"),
}
"""Kinds in which a place of a map depends on what lies near it alone; in all others (attention over the whole
image, ConvNeXt V2's norm over all places) on the whole canvas, the padded part included"""
OUTPUT_NORMS = "hidden_states_norms."
"""Part of the names of norms that the classes of some backbones add to the stages that are read"""


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone and the proof that it is the checkpoint's."""

    module: nn.Module
    name: str
    folder: Path
    num_tensors: int
    """Tensors found equal to the checkpoint's"""
    identity_layers: int
    """Output norms and factors that the checkpoint lacks and that do nothing (weight 1, bias 0)"""
    fingerprint: str
    """sha256 over names and contents of all tensors, architecture and normalisation"""
    normalization: Normalization
    strides: tuple[int, ...]
    """Of the maps that it gives, px"""
    fit: Fit
    """The data.image_size.fit with which no part of the canvas that is not the image has a say: pad where a place
    of a map depends on what lies near it"""

    @property
    def is_local(self) -> bool:
        """A folder of this machine, not a model of the Hub."""
        return is_local_folder(self.name)


def load_backbone(cfg: ModelConfig, num_maps: int) -> Backbone:
    """Load `cfg.backbone` so that it gives `cfg.out_features`, by default its last `num_maps` maps.

    Raises:
        UserError: if it has no backbone class, no safetensors weights, or a tensor differs.
    """
    assert cfg.backbone is not None
    folder = local_folder(cfg.backbone, cfg.backbone_revision, "model.backbone")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.backbone {cfg.backbone}: {folder} has no weights (no *.safetensors); "
            "pickled weights (*.bin, *.pth) are not read, since loading them can run code"
        )
    where = f"model.backbone {cfg.backbone}"
    with refusing(where):
        module, missing, added = _from_pretrained(cfg, folder, num_maps)
        normalization = Normalization.of_folder(folder)
        strides = map_strides(module)
        config: Any = module.config
        type(config).from_dict(config.to_dict())  # as whoever loads the export does
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: tensor {name} is not finite; its weights are broken")
    digests = tensor_digests(module)
    added += _identity_norms(module, missing, folder)
    verify(digests, folder, ignore=added)
    return Backbone(
        module=module,
        name=cfg.backbone,
        folder=folder,
        num_tensors=len(digests) - len(added),
        identity_layers=len({name.rpartition(".")[0] for name in added}),
        fingerprint=fingerprint(digests, folder, normalization),
        normalization=normalization,
        strides=strides,
        fit=fit_of(module),
    )


def fit_of(module: nn.Module) -> Fit:
    """See `Backbone.fit`."""
    config: Any = module.config
    return "pad" if config.model_type in LOCAL else "stretch"


def transplant(backbone: Backbone, target: nn.Module) -> None:
    """Load the backbone's weights into a detector's backbone and compare every tensor.

    Raises:
        UserError: naming the first tensor that does not equal the checkpoint's.
    """
    target.load_state_dict(backbone.module.state_dict(), strict=True)
    wanted = tensor_digests(backbone.module)
    for name, digest in tensor_digests(target).items():
        if wanted.get(name) != digest:
            raise UserError(f"model.backbone {backbone.name}: tensor {name} was not loaded")


@torch.no_grad()
def map_strides(module: nn.Module, multiple: int = 1) -> tuple[int, ...]:
    """Strides of a backbone's maps, px, as a blank image shows them.

    Args:
        multiple: sides of images have to be multiples of it, px.
    """
    side = round_up(PROBE_PX, multiple)
    was_training = module.training
    module.eval()
    maps = module(torch.zeros(1, 3, side, side)).feature_maps
    module.train(was_training)
    return tuple(round(side / max(1, feature_map.shape[-1])) for feature_map in maps)


def tensor_digests(module: nn.Module) -> dict[str, str]:
    """sha256 by name of every tensor that a checkpoint of `module` has to provide."""
    return {
        name: _digest(tensor)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def fingerprint(digests: dict[str, str], folder: Path, normalization: Normalization) -> str:
    """One sha256 for what a backbone computes: its tensors and their names, its architecture, and how
    pixels are prepared for it."""
    config = json.loads((folder / "config.json").read_bytes())
    architecture = {name: value for name, value in config.items() if name not in OF_THE_FILE}
    parts = (sorted(digests.items()), architecture, dataclasses.astuple(normalization))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def verify(
    digests: dict[str, str],
    folder: Path,
    ignore: Collection[str] = (),
    where: str = "model.backbone",
    prefixes: int = 2,
) -> None:
    """Compare each tensor with the files of a checkpoint folder.

    A tensor must equal the file's tensor of its name (up to `prefixes` leading modules aside); one that transformers
    renames on loading must equal some tensor of the file.

    Raises:
        UserError: naming the tensors that do not.
    """
    files = checkpoint_digests(folder)
    by_tail: dict[str, set[str]] = {}
    for name, digest in files.items():
        for tail in _tails(name, prefixes):
            by_tail.setdefault(tail, set()).add(digest)
    contents = set(files.values())

    def equal(name: str, digest: str) -> bool:
        namesakes = next((by_tail[t] for t in _tails(name, prefixes) if t in by_tail), contents)
        return digest in namesakes

    different = [n for n, digest in digests.items() if n not in ignore and not equal(n, digest)]
    if different:
        raise UserError(
            f"{where}: {len(different)} of {len(digests)} tensors do not equal the checkpoint "
            f"{folder}; first: {different[0]}"
        )


def _tails(name: str, prefixes: int) -> list[str]:
    """A tensor's name as it is and without leading modules (`model.`, `encoder.`)."""
    parts = name.split(".")
    return [".".join(parts[cut:]) for cut in range(min(prefixes + 1, len(parts) - 1))]


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """sha256 by name of every tensor in the folder's safetensors files, as fp32; of query, key and value in one
    tensor, as torch's attention has them, also each of them.

    Raises:
        UserError: naming a file that is not safetensors.
    """
    digests = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    tensor = tensors.get_tensor(name)
                    digests[name] = _digest(tensor)
                    if name.endswith(FUSED) and tensor.ndim:
                        parts = zip("qkv", tensor.chunk(3), strict=False)
                        digests |= {f"{name}.{part}": _digest(value) for part, value in parts}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not a readable safetensors file: {error}") from error
    return digests


def _digest(tensor: torch.Tensor) -> str:
    if tensor.is_floating_point():
        tensor = tensor.float()
    values = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def _from_pretrained(
    cfg: ModelConfig, folder: Path, num_maps: int
) -> tuple[nn.Module, list[str], list[str]]:
    """The backbone in fp32, the names of its tensors that the checkpoint lacks, and of those that networks like
    the checkpoint's do not have, which do nothing."""
    where = f"model.backbone {cfg.backbone}"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        plain = type(config) is ViTConfig
        kind: Any = None if plain else MODEL_FOR_BACKBONE_MAPPING[type(config)]
    except KeyError as error:
        raise UserError(
            f"{where}: transformers has no backbone class for model type "
            f"{config.model_type!r}; DINOv3, DINOv2, ConvNeXt(V2), ResNet, Swin, PVTv2, ViTDet and others have "
            "one, and a plain vit is read as DINOv2's"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    if plain:
        config = plain_vit.config_of(config)
    stages = list(config.stage_names)
    features = cfg.out_features or [stage for stage in stages if stage != "stem"][-num_maps:]
    if not set(features) <= set(stages):
        raise UserError(f"model.out_features {features}: this backbone has {stages}")
    try:
        with quiet_transformers():  # what is missing is checked and said below
            if plain:
                return plain_vit.load(folder, config, features)
            module, info = kind.from_pretrained(
                folder,
                out_features=features,
                dtype=torch.float32,
                output_loading_info=True,
                **SAFE,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{where}: cannot be loaded: {' '.join(str(error).split())}") from error
    if info["mismatched_keys"]:
        raise UserError(f"{where}: tensors of another shape: {sorted(info['mismatched_keys'])[:3]}")
    return module, sorted(info["missing_keys"]), []


def _identity_norms(module: nn.Module, missing: Sequence[str], folder: Path) -> list[str]:
    """The missing tensors, all of which must be of norms that a backbone class adds to its outputs, and which no
    checkpoint has; they have weight 1 and bias 0."""
    state = module.state_dict()
    for name in missing:
        start = 1.0 if name.endswith("weight") else 0.0
        if OUTPUT_NORMS not in name or not bool((state[name] == start).all()):
            raise UserError(
                f"model.backbone: the checkpoint {folder} lacks {len(missing)} tensors of the "
                f"backbone, which would stay random; first: {name}"
            )
    return list(missing)
