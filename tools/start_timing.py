"""How long a step of a configuration takes on this machine: a few are taken, and nothing is written."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from data.batch import Batch
from data.canvas import CanvasRule, ResizedSizes
from data.dataset import Data
from data.feed.loader import TrainDataset, train_loader
from data.feed.sampler import StepSampler
from model.build import build_model
from settings.keys import Config

TRIED = 3
"""Batches that are loaded"""
AROUND_S = 40.0
"""Imports, the start and the export"""
USED = 0.85
"""Part of a budget that is planned: other processes, drawing, saving"""
EVALUATIONS = 4
MOST_EPOCHS = 120
VIEWS = 8
"""Of stored features"""
WORTH = 1.2
"""How many times more steps stored features have to give"""


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine."""

    step_s: float
    """A step"""
    backbone_s: float
    """Of it what stored features save; 0 if the backbone is not frozen"""
    image_s: float
    """An image in an evaluation"""


@dataclass(frozen=True)
class Plan:
    """What fits into a time budget."""

    steps: int
    cache_features: int
    evaluations: int
    seconds: float
    """What it takes"""


def measure(cfg: Config, data: Data) -> Pace:
    """Seconds of a step and of its parts, the least of two after a first one.

    Raises:
        UserError: if the detector cannot be built.
    """
    torch.manual_seed(0)
    detector = build_model(cfg.model, data.taxonomy, cfg.data.image_size)
    device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    trainable = detector.trainable.to(device)
    load_s, batches = _batches(cfg, data, detector.rule, device)
    turn = itertools.cycle(batches)

    def step() -> None:
        batch = next(turn)
        trainable(batch, trainable.counts(batch).alone).total.backward()
        trainable.zero_grad()

    def backbone() -> None:
        with torch.no_grad():
            detector.backbone_module(batches[0].pixel_values.float() / 255)

    def predict() -> None:
        with torch.no_grad():
            trainable.predict(batches[0])

    trainable.train()
    step_s = least(step, device)
    backbone_s = least(backbone, device) if cfg.model.freeze == "all" else 0.0
    trainable.eval()
    image_s = least(predict, device) / cfg.train.global_batch_size
    return Pace(step_s + load_s / 2, min(backbone_s + load_s / 2, 0.95 * step_s), image_s)


def _batches(
    cfg: Config, data: Data, rule: CanvasRule, device: torch.device
) -> tuple[float, list[Batch]]:
    """Seconds that a batch takes to load, and the first ones of a run."""
    size = cfg.train.global_batch_size
    own = dataclasses.replace(cfg.data, image_size=rule.size, num_workers=0)
    stored = data.train.table.sizes
    sampler = StepSampler(
        ResizedSizes(stored, own.image_size), size, size, cfg.run.seed, multiple=rule.multiple
    )
    dataset = TrainDataset(data.train, own, cfg.run.seed, data.labels, data.taxonomy)
    start = time.perf_counter()
    loader = train_loader(dataset, sampler, pin=False)
    batches = list(itertools.islice(loader, TRIED))
    return (time.perf_counter() - start) / len(batches), [batch.to(device) for batch in batches]


def least(action: Callable[[], None], device: torch.device) -> float:
    """Seconds of an action, the least of two after a first one."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def plan(pace: Pace, minutes: float, train: int, val: int, batch: int) -> Plan:
    """The steps that fit into `minutes`, and whether storing features gives more of them.

    Args:
        train, val: images. batch: images of a step.
    """
    budget = max(10.0, USED * (60 * minutes - AROUND_S))
    evaluation = val * pace.image_s
    evaluations = max(1, min(EVALUATIONS, int(0.25 * budget / max(evaluation, 1e-9))))
    left = max(0.0, budget - evaluations * evaluation)
    most = max(1, math.ceil(MOST_EPOCHS * train / batch))
    live = int(left / pace.step_s)
    views = max(1, min(VIEWS, live * batch // train)) if train else 1
    storing = views * (train + val) / batch * pace.backbone_s
    stored = int((left - storing) / max(pace.step_s - pace.backbone_s, 1e-9))
    cached = pace.backbone_s > 0 and live < most and stored > WORTH * live
    steps = max(1, min(most, stored if cached else live))
    a_step = pace.step_s - (pace.backbone_s if cached else 0)
    seconds = AROUND_S + steps * a_step + evaluations * evaluation + (storing if cached else 0)
    return Plan(steps, views if cached else 0, min(evaluations, steps), seconds)
