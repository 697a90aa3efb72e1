"""Ranges of keys and contradictions between them.

Not by types of jsonargparse, which end at the first problem: here all are told at once.
"""

import functools
import math
import os
import re
import typing
from collections.abc import Iterator
from typing import Any

from errors import UserError
from settings.image_keys import MOST_OVERLAP
from settings.keys import (
    FROZEN_STAGES,
    MAX_SYNTHETIC_SEED,
    PROFILE_WARM_UP,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from settings.label_checks import check_labels, check_size
from settings.packed_checks import check_packed
from settings.parallel_checks import check_parallel
from settings.precision_checks import check_loss_scale
from settings.tasks import METRICS
from settings.walk import config_to_dict, leaf_keys
from settings.weight_checks import check_class_weights

MOST_WORKERS = 512
LARGEST_LABEL = 1 << 16
"""Values of label maps lie below it"""
TRACKERS = ("trackio", "none", "wandb", "comet_ml", "mlflow", "clearml", "swanlab")
WITHOUT_NECK = ("detr", "conditional_detr", "linear", "pmd")
"""Heads that read one map, or the maps of a backbone as they are"""
LARGEST_LR = 1e38
"""What a float32 holds"""


def world_size() -> int:
    """Number of processes that the launcher started (torchrun and accelerate set WORLD_SIZE).

    Raises:
        UserError: if the environment holds something else.
    """
    numbers = {}
    for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise UserError(f"{name} {value!r} in the environment: not a number; unset it")
        numbers[name] = int(value)
    return max(1, numbers["WORLD_SIZE"])


def check_config(cfg: Config, world: int | None = None) -> None:
    """Cross-checks between keys.

    Raises:
        UserError: listing every contradiction with its key, its value and what to write instead.
    """
    world = world_size() if world is None else world
    if absent := list(_null(cfg)):  # the other checks count on values
        raise UserError("\n  ".join(absent))
    problems = [
        *_not_finite(config_to_dict(cfg)),
        *_check_train(cfg, world),
        *(*check_loss_scale(cfg.train), *check_class_weights(cfg.train)),
        *check_parallel(cfg),
        *(*_check_data(cfg.data), *check_packed(cfg.data)),
        *_check_task(cfg),
        *_check_start(cfg),
        *_check_neck(cfg),
        *_check_run(cfg),
        *_check_optim(cfg),
    ]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} problems in the configuration:", *problems]))


def micro_batch_size(train: TrainConfig, world: int) -> int:
    """Images per forward pass on one device; as long as that is left to a trial, the fewest."""
    size = train.micro_batch_size
    if isinstance(size, str):
        return 1
    return size or max(1, train.global_batch_size // world)


def _null(cfg: Config) -> Iterator[str]:
    """Every key without a value (null) that needs one; the parser lets them pass."""
    for key, kind in leaf_keys():
        value = functools.reduce(getattr, key.split("."), cfg)
        if value is None and type(None) not in typing.get_args(kind):
            yield f"{key}: null; give it a value, or leave the key out for its default"


def _texts(value: Any) -> Iterator[str]:
    """Every text of the configuration, also in lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Every number of the configuration that is infinite or none (NaN), also in lists."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _not_finite(inner, f"{key}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} {value}: must be a finite number"


def _check_train(cfg: Config, world: int) -> Iterator[str]:
    train = cfg.train
    if (train.epochs is None) == (train.steps is None):
        yield (
            f"train.epochs {train.epochs} and train.steps {train.steps}: set exactly one of them "
            "(null drops one)"
        )
    every = ("evaluate_every", "checkpoint_every", "keep_checkpoints", "patience")
    for key in ("epochs", "steps", "global_batch_size", *every):
        yield from _positive(f"train.{key}", getattr(train, key))
    if not isinstance(train.micro_batch_size, str):
        yield from _positive("train.micro_batch_size", train.micro_batch_size)
    if train.ema_decay is not None and not 0 < train.ema_decay < 1:
        yield f"train.ema_decay {train.ema_decay}: must lie between 0 and 1"
    if train.max_skipped_steps < 0:
        yield f"train.max_skipped_steps {train.max_skipped_steps}: must be 0 or more"
    total, micro = train.global_batch_size, micro_batch_size(train, world)
    if total > 0 and micro > 0 and total % (micro * world):
        per_process = total // world if total % world == 0 else 0
        valid = [str(m) for m in range(1, per_process + 1) if per_process % m == 0]
        if valid:
            advice = f"with {world} process(es), micro_batch_size can be {', '.join(valid)}"
        else:
            lower, upper = total // world * world, -(-total // world) * world
            sizes = [str(size) for size in (lower, upper) if size]
            advice = f"with {world} processes, global_batch_size can be {' or '.join(sizes)}"
        yield (
            f"train.global_batch_size {total} is not a multiple of micro_batch_size {micro} x "
            f"{world} process(es); {advice}"
        )


def _check_data(data: DataConfig) -> Iterator[str]:
    if data.source != "synthetic" and not data.path:
        yield f"data.path: needed with data.source {data.source}"
    if not 0 < data.val_fraction < 1:
        yield f"data.val_fraction {data.val_fraction}: must lie between 0 and 1"
    same = data.val_split == data.train_split and data.train_annotations == data.val_annotations
    if data.val_split is not None and same and data.source != "synthetic":
        yield (
            f"data.val_split {data.val_split}: is the training split, and a metric on it measures memory; "
            "leave it out (data.val_fraction is kept aside then), or say data.val_on_train true instead"
        )
    if data.val_on_train and data.val_split:
        yield f"data.val_on_train: contradicts data.val_split {data.val_split}; drop one of them"
    if data.source != "hub" and data.revision:
        yield f"data.revision {data.revision}: only a Hub dataset has revisions"
    yield from check_labels(data)
    yield from check_size(data)
    if data.streaming and data.source != "hub":
        yield f"data.streaming: only a Hub dataset can be streamed, not data.source {data.source}"
    if data.streaming and "[" in f"{data.train_split}{data.val_split}":
        yield "data.streaming: reads whole splits; drop it, or the [...] of the split"
    for key in ("limit", "synthetic_train", "synthetic_val"):
        yield from _positive(f"data.{key}", getattr(data, key))
    if data.repeat_threshold is not None and not 0 < data.repeat_threshold <= 1:
        yield (
            f"data.repeat_threshold {data.repeat_threshold}: a part of the images, more than 0 and at most 1"
        )
    tiles = data.tiles
    yield from _positive("data.tiles.size", tiles.size)
    if not 0 <= tiles.overlap <= MOST_OVERLAP:
        yield f"data.tiles.overlap {tiles.overlap}: a part of a side, 0 to {MOST_OVERLAP}"
    if data.cache_features < 0:
        yield f"data.cache_features {data.cache_features}: must be 0 or more"
    if not 0 <= data.num_workers <= MOST_WORKERS:
        yield f"data.num_workers {data.num_workers}: must lie in 0 ... {MOST_WORKERS}"


def _check_task(cfg: Config) -> Iterator[str]:
    metrics = METRICS[cfg.model.task]
    if cfg.eval.metric is not None and cfg.eval.metric not in metrics:
        yield f"eval.metric {cfg.eval.metric}: {cfg.model.task} has {', '.join(metrics)}"
    if cfg.data.source == "label_maps" and cfg.model.task != "semantic_segmentation":
        yield (
            f"data.source label_maps: has the class of every pixel and no objects, as model.task "
            f"semantic_segmentation needs, not {cfg.model.task}"
        )
    if not 0 <= cfg.data.ignore_index < LARGEST_LABEL:
        yield f"data.ignore_index {cfg.data.ignore_index}: must lie in 0 ... {LARGEST_LABEL - 1}"
    values = cfg.data.label_values
    if values is not None and len(values) != len(cfg.data.labels or []):
        yield (
            f"data.label_values {values}: needs data.labels with a name for each value, which are "
            f"{cfg.data.labels}"
        )
    if values is not None and (len(set(values)) < len(values) or cfg.data.reduce_labels):
        yield f"data.label_values {values}: must differ from each other, and go without reduce_labels"
    for value in [] if values is None else values:
        if not 0 <= value < LARGEST_LABEL:
            yield f"data.label_values {value}: must lie in 0 ... {LARGEST_LABEL - 1}"
    if cfg.data.stuff and cfg.model.task != "panoptic_segmentation":
        yield f"data.stuff {cfg.data.stuff}: has no effect with model.task {cfg.model.task}"
    if cfg.data.background is not None and not cfg.data.background.strip():
        yield "data.background: is empty; name the class, or say null"


WHOLE_HEADS = {
    "rf_detr": ("a windowed DINOv2", "deimv2 or deformable_detr"),
    "rf_detr_seg": ("a windowed DINOv2", "maskformer or mask2former"),
}
"""Heads that are trained only with the backbone that is theirs, what that is, and heads for another one"""


def whole_head_problem(model: ModelConfig) -> str | None:
    """What is wrong if the head cannot be put on the configured backbone."""
    if model.head not in WHOLE_HEADS or model.backbone is None:
        return None
    own, others = WHOLE_HEADS[model.head]
    return (
        f"model.head {model.head} with model.backbone {model.backbone}: it has {own} of its own; set "
        "model.backbone null and model.init_from to a pretrained detector of this kind, or take "
        f"model.head {others} for this backbone"
    )


def _check_start(cfg: Config) -> Iterator[str]:
    model = cfg.model
    if problem := whole_head_problem(model):
        yield problem
    if not re.fullmatch(rf"all|none|{FROZEN_STAGES}[1-9][0-9]?", model.freeze):
        yield (
            f"model.freeze {model.freeze}: must be all, none, or {FROZEN_STAGES} and the number of the first stages "
            f"that stay as they are ({FROZEN_STAGES}2)"
        )
    if cfg.data.cache_features and model.freeze != "all":
        yield f"data.cache_features {cfg.data.cache_features}: with model.freeze {model.freeze} features change; set it 0"
    if model.init_from is None:
        silent = {
            "model.backbone": model.backbone,
            "model.head": model.head,
            "data.image_size.longest": cfg.data.image_size.longest,
        }
        for key, value in silent.items():
            if value is None:
                yield f"{key} null: is that of model.init_from, which is not set; set one of them"
        if model.init_from_revision is not None:
            yield f"model.init_from_revision {model.init_from_revision}: has no effect without model.init_from"
        if cfg.optim.new_layers_lr is not None:
            yield f"optim.new_layers_lr {cfg.optim.new_layers_lr}: has no effect without model.init_from"
    elif model.backbone is None and model.out_features is not None:
        yield (
            f"model.out_features {model.out_features}: a whole detector (model.backbone null) reads its own; "
            "leave it out"
        )


def _check_neck(cfg: Config) -> Iterator[str]:
    model = cfg.model
    yield from _positive("model.neck_channels", model.neck_channels)
    yield from _positive("optim.neck_lr", cfg.optim.neck_lr)
    if model.neck == "none":
        if cfg.optim.neck_lr is not None:
            yield f"optim.neck_lr {cfg.optim.neck_lr}: has no effect with model.neck none; drop it"
    elif model.neck is not None and model.backbone is None:
        yield (
            f"model.neck {model.neck}: a whole detector (model.backbone null) has its own maps; leave it out, or "
            "name a model.backbone"
        )
    elif model.neck is not None and model.head in WITHOUT_NECK:
        yield (
            f"model.neck {model.neck}: {model.head} reads the backbone's own maps; leave model.neck out, or take "
            "another head (deformable_detr, rt_detr_v2, d_fine, deimv2, maskformer, mask2former)"
        )


def _check_run(cfg: Config) -> Iterator[str]:
    if not cfg.run.output_dir.strip():
        yield "run.output_dir: is empty; name a folder"
    if any("\0" in text for text in _texts(config_to_dict(cfg))):
        yield "the configuration holds a null character, which no name can have"
    if not 0 <= cfg.eval.score_threshold <= 1:
        yield f"eval.score_threshold {cfg.eval.score_threshold}: must lie between 0 and 1"
    for key in ("log_every", "collective_timeout_s", "preflight_timeout_s", "profile"):
        yield from _positive(f"run.{key}", getattr(cfg.run, key))
    if cfg.run.max_bad_images < 0:
        yield f"run.max_bad_images {cfg.run.max_bad_images}: must be 0 or more"
    yield from _positive("eval.max_detections", cfg.eval.max_detections)
    yield from _positive("eval.batch_size", cfg.eval.batch_size)
    if cfg.eval.max_detections > 100:
        yield f"eval.max_detections {cfg.eval.max_detections}: COCO's metrics look at 100 at most"
    if cfg.run.tracker not in TRACKERS:
        yield f"run.tracker {cfg.run.tracker}: must be {', '.join(TRACKERS[:-1])} or {TRACKERS[-1]}"
    needed, steps = PROFILE_WARM_UP + (cfg.run.profile or 0) + 1, cfg.train.steps
    if cfg.run.profile and steps and steps < needed:
        yield f"run.profile {cfg.run.profile}: needs {needed} steps, and train.steps is {steps}"
    limit = MAX_SYNTHETIC_SEED if cfg.data.source == "synthetic" else 2**32
    if not 0 <= cfg.run.seed < limit:
        yield f"run.seed {cfg.run.seed}: must lie in 0 ... {limit - 1} with data.source {cfg.data.source}"
    if not 0 <= cfg.eval.panoptic_threshold < 1:
        yield f"eval.panoptic_threshold {cfg.eval.panoptic_threshold}: must lie in [0, 1)"
    if not cfg.hub.push and cfg.hub.repo_id:
        yield f"hub.repo_id {cfg.hub.repo_id}: has no effect without hub.push true"
    if cfg.hub.during and not cfg.hub.push:
        yield "hub.during true: has no effect without hub.push true"


def _check_optim(cfg: Config) -> Iterator[str]:
    yield from _positive("optim.lr", cfg.optim.lr)
    if cfg.optim.lr > LARGEST_LR:
        yield f"optim.lr {cfg.optim.lr}: at most {LARGEST_LR:g}"
    yield from _positive("optim.backbone_lr", cfg.optim.backbone_lr)
    yield from _positive("optim.new_layers_lr", cfg.optim.new_layers_lr)
    if cfg.optim.weight_decay < 0:
        yield f"optim.weight_decay {cfg.optim.weight_decay}: must be 0 or more"
    if not all(0 <= beta < 1 for beta in cfg.optim.betas):
        yield f"optim.betas {list(cfg.optim.betas)}: each must lie in [0, 1)"
    for key in ("backbone_lr", "layer_decay"):
        value = getattr(cfg.optim, key)
        if cfg.model.freeze == "all" and value is not None:
            yield (
                f"optim.{key} {value}: has no effect with model.freeze all; "
                f"drop it or set model.freeze none or {FROZEN_STAGES}2"
            )
    if cfg.optim.layer_decay is not None and not 0 < cfg.optim.layer_decay <= 1:
        yield f"optim.layer_decay {cfg.optim.layer_decay}: must lie in (0, 1]"
    if cfg.optim.warmup_steps < 0 or cfg.optim.max_grad_norm < 0:
        yield "optim.warmup_steps and optim.max_grad_norm must be 0 or more"


def _positive(key: str, value: float | None) -> Iterator[str]:
    if value is not None and value <= 0:
        yield f"{key} {value}: must be greater than 0"
