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
LEAST_TIMES, MOST_TIMES, ENOUGH_S = 2, 5, 3.0
"""Of an action that is timed, and the seconds after which the least are enough"""
BUSY = 1.3
"""How many times longer than it computes a step takes on a machine that is told to be busy"""
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
class Measured:
    """The same of two clocks."""

    wall: Pace
    """As it is now: by which minutes are planned"""
    alone: Pace
    """As it would be if this process had the machine for itself: by which is chosen what is trained, which must not be
    another thing because other programs run at the moment"""

    @property
    def busy(self) -> bool:
        """Whether other programs take a considerable part of the machine."""
        return self.wall.step_s > BUSY * self.alone.step_s


@dataclass(frozen=True)
class Times:
    """Seconds of an action."""

    wall: float
    alone: float


@dataclass(frozen=True)
class Plan:
    """What fits into a time budget."""

    steps: int
    cache_features: int
    evaluations: int
    seconds: float
    """What it takes"""


def measure(cfg: Config, data: Data) -> Measured:
    """Seconds of a step and of its parts.

    Raises:
        UserError: if the detector cannot be built.
    """
    torch.manual_seed(0)
    detector = build_model(cfg.model, data.taxonomy, cfg.data.image_size)
    device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    trainable = detector.trainable.to(device)
    load, batches = _batches(cfg, data, detector.rule, device)
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
    backbone_s = least(backbone, device) if cfg.model.freeze == "all" else Times(0.0, 0.0)
    trainable.eval()
    batch_s = least(predict, device)
    size = cfg.train.global_batch_size
    return Measured(
        _pace(step_s.wall, backbone_s.wall, load.wall, batch_s.wall / size),
        _pace(step_s.alone, backbone_s.alone, load.alone, batch_s.alone / size),
    )


def _pace(step_s: float, backbone_s: float, load_s: float, image_s: float) -> Pace:
    return Pace(step_s + load_s / 2, min(backbone_s + load_s / 2, 0.95 * step_s), image_s)


def _batches(
    cfg: Config, data: Data, rule: CanvasRule, device: torch.device
) -> tuple[Times, list[Batch]]:
    """What a batch takes to load, and the first ones of a run."""
    size = cfg.train.global_batch_size
    own = dataclasses.replace(cfg.data, image_size=rule.size, num_workers=0)
    stored = data.train.table.sizes
    sampler = StepSampler(
        ResizedSizes(stored, own.image_size), size, size, cfg.run.seed, multiple=rule.multiple
    )
    dataset = TrainDataset(data.train, own, cfg.run.seed, data.labels, data.taxonomy)
    loader = iter(train_loader(dataset, sampler, pin=False))
    batches: list[Batch] = []
    found = [timed(lambda: batches.append(next(loader)), torch.device("cpu")) for _ in range(TRIED)]
    every = Times(sum(t.wall for t in found) / TRIED, sum(t.alone for t in found) / TRIED)
    return every, [batch.to(device) for batch in batches]


def least(action: Callable[[], None], device: torch.device) -> Times:
    """The least of some after a first one, by each clock."""
    action()
    found: list[Times] = []
    end = time.monotonic() + ENOUGH_S
    while len(found) < LEAST_TIMES or (len(found) < MOST_TIMES and time.monotonic() < end):
        found.append(timed(action, device))
    return Times(min(t.wall for t in found), min(t.alone for t in found))


def timed(action: Callable[[], None], device: torch.device) -> Times:
    """What an action takes. On a CPU this thread has a part in all of the work, and the clock of its own time stands
    still while another program has its core; what other devices take is seen by the wall's clock alone.
    """
    own, start = time.thread_time(), time.perf_counter()
    action()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    wall, own = time.perf_counter() - start, time.thread_time() - own
    return Times(wall, min(own, wall) if device.type == "cpu" else wall)


def minutes_for(steps: int, pace: Pace, train: int, val: int, batch: int) -> int | None:
    """The least whole minutes into which so many steps fit; None if no budget has so many of so few images.

    Args:
        train, val, batch: as of `plan`.
    """

    def fits(minutes: int) -> bool:
        return plan(pace, minutes, train, val, batch).steps >= steps

    return next(filter(fits, itertools.count(1))) if steps <= _most(train, batch) else None


def plan(pace: Pace, minutes: float, train: int, val: int, batch: int) -> Plan:
    """The steps that fit into `minutes`, and whether storing features gives more of them.

    Args:
        train, val: images. batch: images of a step.
    """
    budget = max(10.0, USED * (60 * minutes - AROUND_S))
    evaluation = val * pace.image_s
    evaluations = max(1, min(EVALUATIONS, int(0.25 * budget / max(evaluation, 1e-9))))
    left = max(0.0, budget - evaluations * evaluation)
    most = _most(train, batch)
    live = int(left / pace.step_s)
    views = max(1, min(VIEWS, live * batch // train)) if train else 1
    storing = views * (train + val) / batch * pace.backbone_s
    stored = int((left - storing) / max(pace.step_s - pace.backbone_s, 1e-9))
    cached = pace.backbone_s > 0 and live < most and stored > WORTH * live
    steps = max(1, min(most, stored if cached else live))
    a_step = pace.step_s - (pace.backbone_s if cached else 0)
    seconds = AROUND_S + steps * a_step + evaluations * evaluation + (storing if cached else 0)
    return Plan(steps, views if cached else 0, min(evaluations, steps), seconds)


def _most(train: int, batch: int) -> int:
    """Steps that a run has at most, however much time there is."""
    return max(1, math.ceil(MOST_EPOCHS * train / batch))
