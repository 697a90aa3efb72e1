"""The configuration that follows from a dataset, and why each value is what it is."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig

from data.check.advice import enough_queries, fitting_size, found_on, sides
from data.dataset import Data
from errors import refusing
from model.source import local_folder
from settings.keys import ImageSizeConfig
from settings.tasks import Task
from tools.start_backbones import EMBEDDED, GATED

PLAIN_VITS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vitdet")
SMALLEST_PX = 224
USUAL_PX, USUAL_GPU_PX, LARGEST_CPU_PX = 320, 640, 640
SOME_TIMES = 3
"""How many times the least steps of its head a run should have, for which images are made smaller"""
FLIP: dict[str, Any] = {"HorizontalFlip": {"p": 0.5}}
AUGMENT: list[dict[str, Any]] = [
    FLIP,
    {
        "Affine": {
            "scale": [0.7, 1.3],
            "translate_percent": {"x": [-0.1, 0.1], "y": [-0.1, 0.1]},
            "p": 0.8,
        }
    },
    {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}},
]


@dataclass
class Recipe:
    """Values and comments by key."""

    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, why: str = "") -> None:
        """One value, with a reason."""
        self.values[key] = value
        if why:
            self.comments[key] = why


@dataclass(frozen=True)
class Start:
    """Where the weights come from."""

    backbone: str | None
    detector: str | None
    why: str


def choose(data: Data, task: Task, start: Start, gpu: bool) -> Recipe:
    """Everything but the data's own keys and the length of the run.

    Raises:
        UserError: if the weights cannot be had.
    """
    recipe = Recipe()
    if start.detector is not None:
        _whole(recipe, start)
        return recipe
    _images(recipe, data, gpu)
    _backbone(recipe, task, start)
    {"detection": _boxes, "instance_segmentation": _masks}.get(task, _regions)(recipe, data, gpu)
    return recipe


def _whole(recipe: Recipe, start: Start) -> None:
    recipe.set("data.image_size.longest", None, "that of the detector")
    recipe.set("data.augment", [FLIP], "what configs/finetune.yaml was measured with")
    recipe.set(
        "model.backbone",
        None,
        "a whole pretrained detector: only the layers of the classes are new",
    )
    recipe.set("model.head", None)
    recipe.set("model.init_from", start.detector, start.why)
    small = "rates of small detectors (configs/finetune.yaml); authors train large ones with 1e-4 to 2e-4"
    recipe.set("optim.lr", 8e-4, small)
    recipe.set("optim.new_layers_lr", 2e-3)
    recipe.set("optim.max_grad_norm", 0.1)
    recipe.set("optim.schedule", "cosine")
    recipe.set("train.global_batch_size", 8)
    recipe.set("train.ema_decay", 0.99)


def _images(recipe: Recipe, data: Data, gpu: bool) -> None:
    native = int(max(data.train.table.sizes.max(axis=1)))
    usual = USUAL_GPU_PX if gpu else USUAL_PX
    size = ImageSizeConfig(max(SMALLEST_PX, min(usual, -(-native // 32) * 32)), fit="stretch")
    found: Any = sides(data.train, size) if not data.train.dense else []
    why = f"images have up to {native} px"
    if len(found):
        wanted = fitting_size(data, size)
        if wanted > size.longest_px:
            most = max(size.longest_px, 2 * USUAL_GPU_PX if gpu else LARGEST_CPU_PX)
            size = dataclasses.replace(size, longest=min(wanted, most))
        found = sides(data.train, size)
        found.sort()
        small = float((found**2 < 32**2).mean())
        why += (
            f"; so half of the objects are larger than {found[len(found) // 2]:.0f} px, and {small:.0%} smaller than "
            "32 x 32. Larger images find smaller objects, and take longer"
        )
    recipe.set("data.image_size.longest", size.longest_px, why)


def _backbone(recipe: Recipe, task: Task, start: Start) -> None:
    assert start.backbone is not None
    recipe.set("model.task", task) if task != "detection" else None
    gated = f"A stronger one whose licence is to be accepted on its page: {GATED}"
    recipe.set("model.backbone", start.backbone, f"{start.why}\n{gated}")
    recipe.set(
        "model.freeze",
        "all",
        "it is used as it is, and only the head is trained; none trains all of it",
    )


def _last_layer(name: str) -> str | None:
    """Name of the last layer of a plain vision transformer; None of any other backbone."""
    folder = local_folder(name, None, "model.backbone")
    with refusing(f"model.backbone {name}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    plain = config.model_type in PLAIN_VITS
    return f"stage{config.num_hidden_layers}" if plain else None


def _most(data: Data) -> int:
    return max(int(found_on(s, data.labels).max(initial=0)) for s in (data.train, data.val))


def _boxes(recipe: Recipe, data: Data, gpu: bool) -> None:
    """The head of configs/coco_small.yaml; on a GPU that of configs/coco.yaml."""
    layer = _last_layer(recipe.values["model.backbone"])
    recipe.set("data.augment", AUGMENT, "boxes move with the pixels; configs/augment/ has others")
    finer = "its map of stride 16; [stage2] has stride 8, for objects below 20 px"
    recipe.set("model.out_features", [layer or "stage3"], "its last layer" if layer else finer)
    recipe.set(
        "model.head",
        "deimv2",
        "from nothing on a few hundred photos the best of those compared (docs/choosing.md)",
    )
    most = _most(data)
    queries = max(60, enough_queries(most))
    args: dict[str, Any] = {"encoder_type": "lite", "encoder_layers": 0, "num_feature_levels": 2}
    args |= {
        "decoder_layers": 4 if gpu else 3,
        "num_queries": queries,
        "num_denoising": max(50, queries // 2),
    }
    if not gpu:
        args |= {"d_model": 96, "encoder_hidden_dim": 96, "depth_mult": 0.5}
        args |= {"hidden_expansion": 0.34, "decoder_ffn_dim": 256}
    args |= {"dropout": 0.0, "weight_loss_mal": 4.0, "matcher_class_cost": 4.0}
    recipe.set("model.head_args", args)
    recipe.comments["model.head_args.num_queries"] = f"the fullest image has {most} objects"
    if not gpu:
        recipe.comments["model.head_args.d_model"] = "narrow, for a CPU"
    recipe.comments["model.head_args.weight_loss_mal"] = (
        "with less of the class term one object keeps many boxes"
    )
    _rates(recipe, 4e-4 if gpu else 8e-4, 16 if gpu else 4, 0.999 if gpu else 0.99)


def _masks(recipe: Recipe, data: Data, gpu: bool) -> None:
    """The head of configs/synthetic_masks.yaml, with queries for the data."""
    layer = _last_layer(recipe.values["model.backbone"])
    recipe.set(
        "data.augment", [FLIP, {"VerticalFlip": {"p": 0.5}}] if _any_way_up(data) else [FLIP]
    )
    if layer is None:
        recipe.set(
            "model.out_features",
            ["stage1", "stage2", "stage3"],
            "fine maps for the edges, coarse ones for what it is",
        )
    recipe.set(
        "model.head",
        "maskformer",
        "fast on a CPU; mask2former is slower, and better with many small objects",
    )
    most, width = _most(data), 256 if gpu else 64
    args: dict[str, Any] = {
        "num_queries": max(20, enough_queries(most)),
        "decoder_layers": 6 if gpu else 3,
    }
    args |= {
        "d_model": width,
        "decoder_ffn_dim": 4 * width,
        "decoder_attention_heads": 8 if gpu else 4,
    }
    args |= {"fpn_feature_size": width, "mask_feature_size": width, "dropout": 0.0}
    recipe.set("model.head_args", args)
    recipe.comments["model.head_args.num_queries"] = f"the fullest image has {most} objects"
    _rates(recipe, 2e-4 if gpu else 7e-4, 16 if gpu else 4, None)


def _any_way_up(data: Data) -> bool:
    """Square images on the whole, as microscopes and satellites make them."""
    sizes = data.train.table.sizes
    return float((sizes[:, 0] == sizes[:, 1]).mean()) > 0.5


def _regions(recipe: Recipe, data: Data, gpu: bool) -> None:
    recipe.set("data.augment", [FLIP])
    recipe.set(
        "model.head",
        "linear",
        "one layer, minutes on a CPU; maskformer (configs/semantic.yaml) is a few points better",
    )
    _rates(recipe, 1e-2, 16 if gpu else 8, None)


def _rates(recipe: Recipe, lr: float, batch: int, average: float | None) -> None:
    recipe.set(
        "optim.lr", lr, f"for {batch} images a step; with twice as many about 1.4 times as high"
    )
    recipe.set("optim.max_grad_norm", 1.0)
    recipe.set("optim.schedule", "cosine")
    recipe.set("train.global_batch_size", batch)
    if average is not None:
        recipe.set(
            "train.ema_decay", average, "of the averaged weights, which are evaluated and exported"
        )


def why_embedded(asked: bool) -> str:
    """What is said of the backbone that comes with the repository."""
    reason = (
        "no other was found: the Hub cannot be reached, and none is in its cache"
        if not asked
        else "as asked for"
    )
    return (
        f"{EMBEDDED} comes with the repository and knows synthetic street scenes only ({reason}). On other photos expect "
        "little; with network: --backbone facebook/dinov2-small"
    )
