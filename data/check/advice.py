"""What a dataset asks of a configuration: queries, size of images, steps, balance of classes; each with a value."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.canvas import COMMON_MULTIPLE_PX, resized_sizes, round_up
from data.dataset import Data
from data.schema import Split
from settings.keys import AUTO, Config, ImageSizeConfig
from settings.tasks import EVERY_PIXEL, Labels

SMALL_PX, COMFORTABLE_PX = 20.0, 28.0
"""Median side of objects, as the model gets them, below which a map of stride 16 loses them (docs/choosing.md), and that
to which images are enlarged"""
LEAST_PX, MOST_PX = 192, 384
"""Limits of data.image_size.longest auto"""
NEARLY_ALL, AUTO_SIDE_PX = 0.9, 12.0
"""With it, this part of the objects is no smaller than that, px"""
SMALL_PX2 = 32.0**2
LARGEST_PX = 1536
SPARE_QUERIES = 1.2
"""Queries for each object of the fullest image"""
FEW_EPOCHS, GOOD_EPOCHS = 8.0, 25.0
"""On few images: passes below which a head from nothing is not done, and what configs/coco_small.yaml takes"""
ENOUGH_STEPS = 2_000
"""Steps after which few passes are no reason to worry"""
UNEVEN, RARE, UNEVEN_SHARE = 20, 20, 0.3
"""How many times as many objects the commonest class has; objects below which a class is rare; part of the commonest
class's images below which those of a class come more often"""


@dataclass(frozen=True)
class Head:
    """What of a head the advice depends on."""

    name: str
    queries: int | None = None
    """Most objects that it can find on an image; None: any number"""
    few_steps: int = 0
    """Of a head from nothing"""
    why_few: str = ""
    whole: bool = False
    """A pretrained detector, whose size of images and number of queries are its own"""


@dataclass(frozen=True)
class Advice:
    """One thing that does not fit the data."""

    topic: str
    text: str
    """With the figures, and what to set"""
    keys: dict[str, Any] = field(default_factory=dict)
    """Values by key, where one is known"""
    told: str = ""
    """The figures alone, where they are of use without"""


def advise(cfg: Config, data: Data, head: Head) -> list[Advice]:
    """What to change of a configuration for a dataset, most important first."""
    found = [*_queries(data, head), *_steps(cfg, data, head)]
    if data.labels not in EVERY_PIXEL:
        found = [*_size(cfg, data, head), *found, *_balance(cfg, data)]
    return found


def found_on(split: Split, labels: Labels) -> np.ndarray:
    """int64 [N]: how much there is to be found on each image."""
    if labels != "regions":
        return split.table.counts
    objects = split.objects
    pairs = np.unique(np.column_stack([objects.image, objects.classes]), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(split))


def enough_queries(most: int) -> int:
    """Queries for images that have up to `most` objects."""
    return int(math.ceil(max(most * SPARE_QUERIES, most + 5) / 10) * 10)


def _queries(data: Data, head: Head) -> Iterator[Advice]:
    counts = [found_on(split, data.labels) for split in (data.train, data.val)]
    most = max(int(c.max(initial=0)) for c in counts)
    if head.queries is None or most <= head.queries:
        return
    crowded = sum(int((c > head.queries).sum()) for c in counts)
    told = f"{crowded:,} images have more {data.labels} (up to {most}) than the head's {head.queries} queries can find"
    if head.whole:
        yield Advice("queries", f"{told}: a detector with more, or smaller parts of the images")
    else:
        value = enough_queries(most)
        yield Advice(
            "queries",
            f"{told}: set model.head_args.num_queries {value}",
            {"model.head_args.num_queries": value},
        )


def sides(split: Split, size: ImageSizeConfig) -> np.ndarray:
    """Square root of the area of each object as the model gets it, px, float64 [n]."""
    objects, stored = split.objects, split.table.sizes
    scale = (resized_sizes(stored, size) / stored).prod(axis=1)
    return np.sqrt(objects.boxes[:, 2:].prod(axis=1) * scale[objects.image])


def fitting_size(
    data: Data, size: ImageSizeConfig, part: float = 0.5, side: float = COMFORTABLE_PX
) -> int:
    """Longest side of images, px, at which this part of the objects is no smaller than `side` px, within reason."""
    found = sides(data.train, size)
    native = _native(data)
    if not len(found):
        return size.longest_px
    wanted = size.longest_px * side / max(float(np.quantile(found, 1 - part)), 1e-6)
    most = min(LARGEST_PX, max(2 * native, size.longest_px))
    return round_up(int(min(wanted, most)), COMMON_MULTIPLE_PX)


def sized(cfg: Config, data: Data) -> Config:
    """The configuration with a side of images for data.image_size.longest auto."""
    if cfg.data.image_size.longest != AUTO:
        return cfg
    size = replace(cfg.data.image_size, longest=LEAST_PX)
    found = (
        fitting_size(data, size, NEARLY_ALL, AUTO_SIDE_PX)
        if data.labels not in EVERY_PIXEL
        else MOST_PX
    )
    size = replace(size, longest=min(max(found, LEAST_PX), MOST_PX))
    return replace(cfg, data=replace(cfg.data, image_size=size))


def _native(data: Data) -> int:
    return int(np.median(data.train.table.sizes.max(axis=1)))


def _size(cfg: Config, data: Data, head: Head) -> Iterator[Advice]:
    size = cfg.data.image_size
    found = sides(data.train, size)
    if not len(found):
        return
    median, native = float(np.median(found)), _native(data)
    small = float((found**2 < SMALL_PX2).mean())
    if median < SMALL_PX:
        told = (
            f"half of the objects are smaller than {median:.0f} px as the model gets them at {size.longest_px} px, "
            f"{small:.0%} below 32 x 32"
        )
        value = fitting_size(data, size)
        if head.whole or value <= size.longest_px:
            yield Advice(
                "size",
                f"{told}: a finer map, or windows of the images (data.tiles; docs/choosing.md, Small objects)",
                told=told,
            )
        else:
            yield Advice(
                "size",
                f"{told}: set data.image_size.longest {value}, or a finer map (docs/choosing.md, Small objects)",
                {"data.image_size.longest": value},
                told,
            )
    elif size.longest_px > 1.5 * native and not head.whole:
        value = round_up(native, COMMON_MULTIPLE_PX)
        at_native = median * value / size.longest_px
        if at_native >= COMFORTABLE_PX:
            yield Advice(
                "size",
                f"images have {native} px, are enlarged to {size.longest_px}, and objects are large enough without: "
                f"set data.image_size.longest {value}, which makes a step {(size.longest_px / value) ** 2:.1f} times cheaper",
                {"data.image_size.longest": value},
            )


def planned_steps(cfg: Config, num_images: int) -> int:
    """Steps of a run on so many training images."""
    epochs = cfg.train.epochs or 0
    return cfg.train.steps or math.ceil(epochs * num_images / cfg.train.global_batch_size)


def _steps(cfg: Config, data: Data, head: Head) -> Iterator[Advice]:
    images, batch = len(data.train), cfg.train.global_batch_size
    steps = planned_steps(cfg, images)
    epochs = steps * batch / images
    enough = math.ceil(GOOD_EPOCHS * images / batch)
    if not head.whole and steps < head.few_steps:
        value = max(2 * head.few_steps, min(enough, ENOUGH_STEPS))
        slow = head.name in ("detr", "conditional_detr")
        other = ", or another head (model.head deimv2)" if slow else ""
        yield Advice(
            "steps",
            f"a {head.name} head from scratch learns little in {steps} steps ({head.why_few}): set train.steps "
            f"{value}{other}, or start from a trained detector (model.init_from)",
            _steps_keys(value),
        )
    elif epochs < FEW_EPOCHS and steps < ENOUGH_STEPS and not head.whole:
        value = min(enough, ENOUGH_STEPS)
        yield Advice(
            "steps",
            f"{steps} steps of {batch} are {epochs:.1f} passes over {images:,} images, few for a head from scratch: set "
            f"train.steps {value}",
            _steps_keys(value),
        )


def _steps_keys(value: int) -> dict[str, Any]:
    return {"train.steps": value, "train.epochs": None}


def _balance(cfg: Config, data: Data) -> Iterator[Advice]:
    counts = np.bincount(data.train.objects.classes, minlength=len(data.taxonomy.names))
    there = np.flatnonzero(counts)
    if len(there) < 2:
        return
    most, least = there[counts[there].argmax()], there[counts[there].argmin()]
    names = data.taxonomy.names
    answered = (cfg.data.repeat_threshold, cfg.train.class_weights) != (None, None)
    if counts[most] < UNEVEN * counts[least] or answered:
        return
    images = np.unique(
        np.stack([data.train.objects.image, data.train.objects.classes], axis=1), axis=0
    )
    share = np.bincount(images[:, 1], minlength=len(names)) / max(len(data.train), 1)
    value = float(f"{min(1.0, max(0.001, UNEVEN_SHARE * float(share[most]))):.1g}")
    few = (
        f" ({int((counts[there] < RARE).sum())} classes have fewer than {RARE})"
        if counts[least] < RARE
        else ""
    )
    told = f"class {names[most]} has {counts[most]:,} objects and class {names[least]} {counts[least]:,}{few}"
    if share[least] >= value:
        yield Advice(
            "balance",
            f"{told}, on images that are not rare ({share[least]:.0%}): train.class_weights balanced lets it weigh "
            "more in the loss; more labels help more",
        )
        return
    yield Advice(
        "balance",
        f"{told}: set data.repeat_threshold {value:g}, by which images of rare classes come more often; more labels "
        "help more",
        {"data.repeat_threshold": value},
    )
