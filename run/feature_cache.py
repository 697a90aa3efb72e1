"""The feature cache: what a frozen backbone makes of every view of every image, made once.

Files are pure functions of (images, view, transforms, seed, canvas, backbone, precision), which name their folder or
stand in them: what is stale is made anew, whoever made it, and a killed build goes on where it was.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from data.check.advice import planned_steps
from data.dataset import Data
from data.feed.collate import collate
from data.feed.features import SHARD_IMAGES, Contents, FeatureStore, shard_digests
from data.feed.loader import EvalDataset, TrainDataset
from disk import ROOT, cache_root, write_whole
from errors import UserError
from model.build import Detector
from model.given_maps import giving
from model.neck import inner_backbone
from run.feature_files import (
    DTYPES,
    Part,
    Place,
    build,
    is_missing,
    maps_of,
    places,
)
from run.together import ending_together, on_main, told_by_main
from settings.keys import Config

FORMAT = 1
"""Raise it when files made before would be wrong"""
MANIFEST = "made-from.json"
"""File in a folder that says what its name is a hash of, for people"""
LARGE_BYTES = 20e9
"""From here on somebody has to agree first"""
ROOM = 0.95
"""Part of the free space that may be filled"""
COMPARED = 4
"""Stored images of each split that are compared with the backbone at every start"""
TOLERANCE = 0.03
"""Largest difference, relative to the largest value of a map: rounding, and another device's arithmetic"""
MADE_BY = (
    *("torch", "transformers", "albumentations", "albucore", "opencv-python-headless", "pillow"),
    *("numpy", "scipy", "faster-coco-eval"),
)
"""Packages that decide what a view is"""
MADE_FROM = (
    *("data/feed/transforms.py", "data/feed/loader.py", "data/images/decode.py", "data/canvas.py"),
    *("data/masks.py", "data/regions.py", "model/normalization.py", "model/folding.py"),
)
"""Code of ours that does"""


@dataclass(frozen=True)
class Features:
    """The stored maps of a run's images."""

    train: FeatureStore
    val: FeatureStore

    def __str__(self) -> str:
        return f"{self.train.views} view(s) of each training image, stored in {self.train.folder.parent}"


def prepare_features(
    cfg: Config,
    accelerator: Accelerator,
    data: Data,
    detector: Detector,
    agreed: bool = False,
    share: tuple[int, int] = (1, 1),
) -> Features | None:
    """Collective: called on every rank. Make what is missing of the cache, and compare some of it.

    Args:
        agreed: however large it gets.
        share: (k, n): of n jobs that make it together this is number k, which makes its files alone, and compares
            none.

    Returns: None if data.cache_features is 0.

    Raises:
        UserError: if there is no room for it, or a head looks at more than the backbone's maps, or what is
            stored is not what the backbone gives.
    """
    if not cfg.data.cache_features:
        return None
    device, trainable = accelerator.device, detector.trainable.to(accelerator.device)
    was_training = trainable.training
    trainable.eval()
    with torch.random.fork_rng(devices=[]):  # a run goes on as if all had been there
        refuse_lookers(detector, device)
        parts = plan(cfg, accelerator, data, detector)
        on_main(accelerator, lambda: _announce(cfg, detector, parts, device, agreed))
        for rank, world in _dealt_to(accelerator, share):
            own = [place for part in parts for place in places(part)][rank::world]
            with ending_together(accelerator):
                missing = [place for place in own if is_missing(*place)]
                build(cfg, accelerator, detector, missing)
        if share == (1, 1):
            on_main(accelerator, lambda: _compare(cfg, detector, parts, device))
    trainable.train(was_training)
    return Features(*(part.store for part in parts))


def _dealt_to(accelerator: Accelerator, share: tuple[int, int]) -> list[tuple[int, int]]:
    """(rank, world) of each round in which files are dealt out: to all ranks, and then, where these do not share
    the folder, to those of a machine."""
    (number, jobs), world = share, accelerator.num_processes
    if jobs > 1:
        return [((number - 1) * world + accelerator.process_index, jobs * world)]
    local = accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return [(accelerator.process_index, world), local]


def plan(
    cfg: Config, accelerator: Accelerator, data: Data, detector: Detector
) -> tuple[Part, Part]:
    """Collective: called on every rank. What is stored of the training and the validation images, and where."""
    given = cfg.data.cache_folder
    root = Path(given).expanduser() if given else cache_root() / "features"
    train_cfg = dataclasses.replace(cfg.data, image_size=detector.rule.size)
    val = data.val_windows or data.val
    canvas, full = detector.rule.largest(data.train.table.sizes), detector.rule.full
    contents = Contents(root / "contents.json")

    def read_all() -> tuple[tuple[str, ...], tuple[str, ...]]:
        digests = (
            shard_digests(data.train, contents, by_labels=True),
            shard_digests(val, contents, by_labels=False),
        )
        contents.save()
        return digests

    of_train, of_val = told_by_main(accelerator, read_all)
    train_key = {
        "augment": cfg.data.augment,
        "seed": cfg.run.seed,
        "labels": (data.labels, data.taxonomy.background, list(data.taxonomy.stuff)),
    }
    train_from = _made_from(cfg, detector, canvas, train_key)
    val_from = _made_from(cfg, detector, full, {"augment": None})
    return (
        Part(
            FeatureStore(
                root / _name(train_from),
                len(data.train),
                cfg.data.cache_features,
                of_train,
            ),
            data.train,
            canvas,
            TrainDataset(data.train, train_cfg, cfg.run.seed, data.labels, data.taxonomy),
            train_from,
        ),
        Part(
            FeatureStore(
                root / _name(val_from),
                len(val),
                1,
                of_val,
            ),
            val,
            full,
            EvalDataset(val, detector.rule),
            val_from,
        ),
    )


def _made_from(
    cfg: Config,
    detector: Detector,
    canvas: tuple[int, int],
    more: dict[str, Any],
) -> dict[str, Any]:
    """All that the files of a folder are made from but the images, which they tell themselves."""
    config: Any = detector.backbone_module.config
    return {
        "format": FORMAT,
        "made by": {package: version(package) for package in MADE_BY},
        "made from": [hashlib.sha256((ROOT / file).read_bytes()).hexdigest() for file in MADE_FROM],
        "backbone": detector.backbone.fingerprint,
        "maps": list(config.out_features),
        "size": dataclasses.asdict(detector.rule.size),
        "canvas": canvas,
        "stored": cfg.data.cache_precision,
        # In evaluation the model runs in float32, whatever it is trained in.
        "computed": cfg.train.precision if "seed" in more else "no",
        **more,
    }


def _name(known: dict[str, Any]) -> str:
    """Of a folder."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]


def refuse_lookers(detector: Detector, device: torch.device) -> None:
    """
    Raises:
        UserError: if the head's outputs depend on pixels beside the backbone's maps.
    """
    trainable, multiple = detector.trainable, detector.rule.multiple
    side = detector.family.smallest_side(trainable.model.config, detector.strides, multiple)
    blank = torch.zeros(1, 3, side, side, device=device, dtype=trainable.model.dtype)
    mask = torch.ones(1, side, side, dtype=torch.bool, device=device)
    module = inner_backbone(detector.family.backbone_of(trainable.model))
    with torch.no_grad():
        maps = module(blank).feature_maps
        with giving(module, maps):
            one, other = (
                detector.family.call(trainable.model, pixels, mask)
                for pixels in (blank, torch.ones_like(blank))
            )
    for name, value in one.items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, other[name]):
            raise UserError(
                "data.cache_features: this head or neck looks at the pixels too, beside the backbone's maps; set it 0"
            )


def bytes_of(cfg: Config, detector: Detector, files: Sequence[Place], device: torch.device) -> int:
    """What files will take."""
    values = {}
    for canvas in {part.canvas for part, _, _ in files}:
        with torch.no_grad():
            maps = detector.backbone_module(torch.zeros(1, 3, *canvas, device=device)).feature_maps
        values[canvas] = sum(found.numel() for found in maps)
    num = sum(len(part.store.images_of(shard)) * values[part.canvas] for part, _, shard in files)
    return num * DTYPES[cfg.data.cache_precision].itemsize


def _announce(
    cfg: Config,
    detector: Detector,
    parts: Sequence[Part],
    device: torch.device,
    agreed: bool,
) -> None:
    """Say what is made. On the main rank alone.

    Raises:
        UserError: if there is no room for it, or somebody has to agree.
    """
    train, val = (part.store for part in parts)
    missing = [place for part in parts for place in places(part) if is_missing(*place)]
    size, where = bytes_of(cfg, detector, missing, device), train.folder.parent
    word = "images" if cfg.data.tiles.size is None else "windows"
    images = f"{train.views} view(s) of {train.num_images:,} {word} and {val.num_images:,} for validation"
    if not missing:
        return
    try:
        for part in parts:
            part.store.folder.mkdir(parents=True, exist_ok=True)
            if not (file := part.store.folder / MANIFEST).exists():
                write_whole(file, json.dumps(part.made_from, indent=1, sort_keys=True) + "\n")
        free = shutil.disk_usage(where).free
    except OSError as error:
        raise UserError(f"data.cache_folder {where}: {error.strerror}") from error
    if size > ROOM * free:
        raise UserError(
            f"data.cache_features {train.views}: takes {size / 1e9:.1f} GB in {where}, which has {free / 1e9:.1f} GB "
            "free; take fewer views, smaller images, fewer model.out_features, or another data.cache_folder"
        )
    if size > LARGE_BYTES and not agreed:
        raise UserError(
            f"data.cache_features {train.views}: takes {size / 1e9:.0f} GB in {where}; if that is what you want, make it "
            "first with python -m tools.cache_features --yes and the same arguments"
        )
    epochs = planned_steps(cfg, train.num_images) * cfg.train.global_batch_size / train.num_images
    pays, later = f"pays from epoch {train.views + 1} on, and in every later run", ""
    if epochs <= train.views and not agreed:
        pays = f"does not pay in this run of {epochs:.1f} epochs, but in later ones"
        later = "; --data.cache_features 0 does without"
    print(
        f"features    storing {images}: {size / 1e9:.2f} GB in {where}; {pays} with the same images, transforms, "
        f"seed and backbone{later}",
        flush=True,
    )


def _compare(cfg: Config, detector: Detector, parts: Sequence[Part], device: torch.device) -> None:
    """
    Raises:
        UserError: if what is stored of some images is not what the backbone makes of them.
    """
    draw = np.random.default_rng(cfg.run.seed)
    for part in [part for part in parts for _ in range(COMPARED)]:
        store = part.store
        image, view = int(draw.integers(store.num_images)), int(draw.integers(store.views))
        sample = part.sample(image, view)
        if isinstance(sample, str) or store.failure(image, view):
            continue
        found = maps_of(cfg, detector, collate([sample]), device, part.training)
        for ours, kept in zip(found, store.maps(image, view), strict=True):
            scale = float(ours.float().abs().max()) or 1.0
            difference = float((ours[0].float() - kept.float()).abs().max()) / scale
            if not difference < TOLERANCE:
                raise UserError(
                    f"{store.file(view, image // SHARD_IMAGES)}: what is stored of {part.split.records[image].where} is not "
                    f"what the backbone makes of it (difference {difference:.2g} of the largest value); remove {store.folder}"
                )
