"""What classes weigh in the loss of classes: what was given, or a pure function of the training split."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.check.parts import parts_of
from data.dataset import Data
from data.feed.repeats import repeats_of
from errors import UserError, nearest
from model.heads.registry import get_family
from settings.keys import Config
from settings.tasks import EVERY_PIXEL

KEY = "train.class_weights"
BALANCED_LIMITS = (0.1, 10.0)
"""Smallest and largest weight of a balanced class: beyond them a few labels, right or wrong, would decide steps"""
SHOWN = 6
"""Classes whose weights are named"""


def with_class_weights(cfg: Config, data: Data) -> Data:
    """The data that knows what its classes weigh; itself if all weigh the same.

    Raises:
        UserError: for weights of classes that there are not, or that leave nothing to learn.
    """
    given, names = cfg.train.class_weights, data.taxonomy.names
    if given is None:
        return data
    if len(names) < 2:
        raise UserError(
            f"{KEY}: the dataset has one class, {names[0]}, and nothing to weigh it against; leave it out"
        )
    if isinstance(given, Mapping):
        return replace(data, class_weights=weights_of(given, names))
    return replace(data, class_weights=balanced(amounts(cfg, data)))


def weights_of(table: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """float32 [C]: the weights of a table, 1 where a class is not in it.

    Raises:
        UserError: for a name that is none, or if no class weighs anything.
    """
    unknown = [name for name in table if name not in names]
    if unknown:
        near = nearest(unknown[0], names, 0.5)
        hint = f"did you mean {near}?" if near else f"the classes are {', '.join(names[:20])}"
        raise UserError(f"{KEY}.{unknown[0]}: no class has this name; {hint}")
    weights = np.array([table.get(name, 1.0) for name in names], np.float32)
    if not weights.any():
        raise UserError(f"{KEY}: every class weighs 0, and none would be learnt; give one more")
    return weights


def amounts(cfg: Config, data: Data) -> np.ndarray:
    """float64 [C]: how much of each class an epoch has of what the head's loss of classes is a sum over: objects,
    regions or segments, or pixels.

    Raises:
        UserError: where only drawing all masks would tell.
    """
    objects = data.train.objects
    if data.labels not in EVERY_PIXEL:
        objects = objects if objects.iscrowd is None else objects.take(~objects.iscrowd)
    elif data.train.dense:
        objects = parts_of(data.train, data)
    else:
        raise UserError(
            f"{KEY} balanced: how much of each class there is, is known of label maps, and not of masks that may "
            "overlap; give a table, {class: weight}"
        )
    repeats = repeats_of(data.train, cfg.data.repeat_threshold, cfg.run.seed)
    often = np.ones(len(objects)) if repeats is None else repeats.factors[objects.image]
    if get_family(str(cfg.model.head)).of_pixels:
        often = often * objects.areas
    return np.bincount(objects.classes, weights=often, minlength=len(data.taxonomy.names))


def balanced(amount: np.ndarray) -> np.ndarray:
    """float32 [C]: weights of classes, by the square root of how rare they are, within limits; 1 where there is nothing.
    Over all that is learnt their mean is 1, so that the loss of classes is as large beside the others as without them.

    Args:
        amount: float64 [C], of each class.
    """
    weights = np.ones(len(amount))
    there = amount > 0
    root = np.sqrt(amount[there])
    # Times amount = root^2, 1 / root adds up to the sum of the roots.
    weights[there] = amount.sum() / root.sum() / root
    return weights.clip(*BALANCED_LIMITS).astype(np.float32)


def weights_text(data: Data) -> str | None:
    """What a run says of them: the largest and the smallest; None if all weigh the same."""
    weights, names = data.class_weights, data.taxonomy.names
    if weights is None:
        return None
    order = np.argsort(-weights, kind="stable").tolist()
    if len(order) > SHOWN:
        order = [*order[: SHOWN // 2], *order[-SHOWN // 2 :]]
    shown = [f"{names[c]} {weights[c]:.3g}" for c in order]
    if len(names) > SHOWN:
        shown.insert(SHOWN // 2, "...")
    return f"classes weigh in their loss: {', '.join(shown)}"
