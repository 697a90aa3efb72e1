"""What a run says about itself before step 1."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.canvas import resized_sizes
from data.check.advice import Head, advise
from data.dataset import Data
from data.elsewhere import GB, cache_folder
from data.feed.repeats import Repeats, repeats_text
from data.findings import KINDS
from data.remote import is_address
from disk import ROOT
from errors import printable
from model.build import Detector
from run.class_weights import weights_text
from settings.checks import micro_batch_size
from settings.keys import Config, DataConfig, ModelConfig
from settings.tasks import EVERY_PIXEL

LABEL_VALUES = "; data.label_values says what is what in label maps, e.g. [0, 255]"


def banner(
    cfg: Config,
    detector: Detector,
    data: Data,
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    world: int,
    device: str,
    repeats: Repeats | None = None,
) -> Iterator[str]:
    """Lines that show what was loaded, what trains and how much work is planned."""
    backbone = detector.backbone
    norms = f" + {backbone.identity_layers} identity layers" if backbone.identity_layers else ""
    stages = ", ".join(detector.backbone_module.out_features)  # type: ignore[arg-type]
    early = early_layer(detector)
    yield _row("data", _data_text(data))
    if cfg.data.packed is not None and is_address(cfg.data.packed):
        yield _row("", cache_text(cfg.data))
    for note in data.findings.notes:
        yield _row("", note)
    for kind, count in sorted(data.findings.counts().items()):
        yield _row("", f"{count} x {kind}: {KINDS[kind].remedy}")
    yield _row(
        "backbone",
        f"{backbone.name}: {backbone.num_tensors}/{backbone.num_tensors} tensors{norms}, "
        f"sha256={backbone.fingerprint[:16]}, reads {stages}",
    )
    if early:
        yield _row("WARNING", early)
    if not backbone.normalization.declared:
        yield _row(
            "", "its folder has no preprocessor_config.json: ImageNet mean and deviation assumed"
        )
    if detector.neck != "none":
        made = ", ".join(map(str, detector.strides))
        yield _row(
            "neck", f"{detector.neck}, maps of strides {made} px; its export brings its code along"
        )
    yield _row("head", f"{cfg.model.head}, {origin_text(cfg, detector)}")
    yield from rounding(cfg, detector)
    trainable, frozen = parameter_counts(detector)
    yield _row("parameters", f"{trainable:,} trainable, {frozen:,} frozen")
    if detector.unused:
        yield _row("", f"not trained, since nothing uses them: {', '.join(detector.unused[:4])}")
    yield from group_rows(optimizer.param_groups)
    yield _row("batch", batch_text(cfg, world))
    if repeats is not None:
        yield _row("", repeats_text(repeats, data.taxonomy.names, data.train))
    if (weighed := weights_text(data)) is not None:
        yield _row("", weighed)
    epochs = num_steps * cfg.train.global_batch_size / len(repeats or data.train)
    yield _row(
        "plan",
        f"{num_steps} steps = {epochs:.1f} epochs, warm-up {cfg.optim.warmup_steps}, "
        f"{cfg.optim.schedule} schedule, precision {cfg.train.precision}, {device}",
    )
    if cfg.train.precision == "fp16" and device == "cpu":
        yield _row("", "fp16 on a CPU is slow: for tests and debugging")
    yield from warnings_about(cfg, detector, data, num_steps)


def early_layer(detector: Detector) -> str | None:
    """If nothing of the second half of a plain vision transformer is read, whose stages are its layers."""
    module: Any = detector.backbone_module
    layers = [name for name in module.stage_names if name != "stem"]
    if hasattr(module.config, "depths"):  # its stages are of different strides
        return None
    last = max(layers.index(name) + 1 for name in module.out_features if name in layers)
    if 2 * last > len(layers):
        return None
    return (
        f"of its {len(layers)} layers nothing after the layer {last} is read: what it knows is in the last ones; leave "
        "model.out_features out"
    )


def cache_text(data: DataConfig) -> str:
    """From where images come that are not here, and what of them is kept."""
    folder = cache_folder(data)
    free = shutil.disk_usage(folder).free / GB
    most = data.packed_cache_gb
    told = f"from {data.packed}; at most {most:g} GB are kept in {folder}, where {free:.0f} GB are free"
    return told if free > most else f"{told}: give another data.packed_cache_folder, or fewer"


def rounding(cfg: Config, detector: Detector) -> Iterator[str]:
    """The side that stretched images really have, if it is not the configured one."""
    given, rule = cfg.data.image_size.longest, detector.rule
    if rule.size.fit == "stretch" and rule.size.longest_px != given:
        yield _row(
            "images",
            f"stretched to {rule.size.longest_px} x {rule.size.longest_px} px: data.image_size.longest {given} is no "
            f"multiple of {rule.multiple}, which this head needs",
        )


def origin_text(cfg: Config, detector: Detector) -> str:
    """Where the head's weights come from, and which are new."""
    if not detector.taken:
        return "from scratch"
    fresh = [name.removeprefix("model.") for name in detector.fresh]
    total = detector.taken + len(fresh)
    new = f"; new: {', '.join(fresh[:4])}{', ...' if len(fresh) > 4 else ''}" if fresh else ""
    return f"{detector.taken}/{total} tensors from {cfg.model.init_from}, each compared{new}"


def parameter_counts(detector: Detector) -> tuple[int, int]:
    """(trainable, frozen) parameters."""
    parameters = list(detector.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return trainable, sum(p.numel() for p in parameters) - trainable


def group_rows(groups: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table of optimizer groups."""
    width = max(20, *(len(group["name"]) for group in groups))
    for number, group in enumerate(groups):
        size = sum(p.numel() for p in group["params"])
        yield _row(
            "" if number else "optimizer",
            f"{group['name']:<{width}} lr {group['base_lr']:.1e}  weight decay {group['weight_decay']:.0e}"
            f"  {len(group['params'])} tensors, {size:,} values",
        )


def batch_text(cfg: Config, world: int) -> str:
    """Batch arithmetic: global = micro x processes x accumulation."""
    total, micro = cfg.train.global_batch_size, micro_batch_size(cfg.train, world)
    turns = total // (micro * world)
    return f"{total} images a step = {micro} per pass x {world} process(es) x {turns} accumulated"


def warnings_about(cfg: Config, detector: Detector, data: Data, num_steps: int) -> Iterator[str]:
    """What is allowed but will probably disappoint."""
    if cfg.data.source != "synthetic" and is_embedded(cfg.model):
        yield _row(
            "WARNING",
            "the embedded backbone knows synthetic street scenes only; of other photos expect little: take an open one, "
            "--model.backbone facebook/dinov2-small (docs/choosing.md, Weights)",
        )
    if cfg.train.patience is not None and cfg.train.evaluate_every is None:
        yield _row("WARNING", "train.patience has no effect without train.evaluate_every")
    for advice in advise(cfg, data, head_facts(cfg, detector)):
        if advice.topic != "size":  # below, where strides are known
            yield _row("WARNING", advice.text)
    yield from small_objects(detector, data)
    if absent := classes_without_example(data):
        yield _row(
            "WARNING",
            f"no training image has {', '.join(map(printable, absent[:5]))}"
            f"{', ...' if len(absent) > 5 else ''}: {len(absent)} class(es) cannot be learnt"
            f"{LABEL_VALUES if data.train.dense else ''}",
        )
    seen = {digest.partition(b"@")[0] for digest in data.train.table.digests} - {b""}
    shared = sum(digest in seen for digest in data.val.table.digests)
    if shared and not cfg.data.val_on_train:
        yield _row(
            "WARNING",
            f"{shared} validation image(s) are training images as well: the metrics measure memory on them",
        )
    if cfg.data.val_on_train:
        yield _row("WARNING", "validation on the training images: the metrics measure memory")


def is_embedded(model: ModelConfig) -> bool:
    """Whether the backbone is the one that comes with the repository."""
    if model.backbone is None:
        return False
    places = (Path(model.backbone).expanduser(), ROOT / model.backbone)
    own = (ROOT / "street" / "backbone").resolve()
    return any(place.is_dir() and place.resolve() == own for place in places)


def head_facts(cfg: Config, detector: Detector) -> Head:
    """What of the head the advice depends on."""
    family, whole = detector.family, cfg.model.backbone is None
    few = 0 if cfg.model.init_from is not None else family.few_steps
    return Head(str(cfg.model.head), detector.num_queries, few, family.few_steps_source, whole)


def small_objects(detector: Detector, data: Data) -> Iterator[str]:
    """If half of the objects are smaller than the distance between two places of the finest map that is read."""
    if data.labels in EVERY_PIXEL:
        return
    table, objects = data.train.table, data.train.objects
    scale = (resized_sizes(table.sizes, detector.rule.size) / table.sizes).prod(axis=1)
    sides = np.sqrt(objects.boxes[:, 2:].prod(axis=1) * scale[objects.image])
    finest = min(detector.strides)
    if len(sides) and np.median(sides) < finest:
        yield _row(
            "WARNING",
            f"half of the objects are smaller than {np.median(sides):.0f} px as the model gets them, and the finest map "
            f"that the head reads has a place every {finest} px: read a finer stage (model.out_features, model.neck), or enlarge "
            "images (data.image_size); docs/choosing.md, Small objects",
        )


def classes_without_example(data: Data) -> list[str]:
    """Names of classes of which training sees nothing."""
    there = set(np.unique(data.train.objects.classes).tolist())
    if data.taxonomy.background is not None:
        there.add(data.taxonomy.background)
    return [name for c, name in enumerate(data.taxonomy.names) if c not in there]


def _data_text(data: Data) -> str:
    counts = [int(split.table.counts.sum()) for split in (data.train, data.val)]
    what = "masks" if data.labels == "regions" and not data.train.dense else data.labels
    names = ", ".join(data.taxonomy.names[:5]) + (", ..." if len(data.taxonomy.names) > 5 else "")
    return (
        f"{len(data.train)} training images with {counts[0]} {what}, {len(data.val)} validation images "
        f"with {counts[1]}; {len(data.taxonomy.names)} class(es): {names}"
    )


def _row(name: str, text: str) -> str:
    return f"{name:<11} {text}"
