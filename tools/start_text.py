"""What `tools.start` says: one screen."""

import dataclasses
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.check.advice import Advice, Head, advise
from data.check.statistics import quantiles
from data.dataset import Data
from data.findings import KINDS
from data.sources.recognise import Recognised
from model.heads.registry import get_family
from settings.keys import Config
from settings.tasks import EVERY_PIXEL, Task
from tools.start_recipe import SOME_TIMES, Recipe
from tools.start_timing import Pace, Plan, minutes_for

LITTLE = 0.5
"""Part of the steps that a head from nothing needs, below which it finds little or nothing"""


@dataclass(frozen=True)
class Chosen:
    """What is written, and what it was measured with."""

    cfg: Config
    recipe: Recipe
    plan: Plan
    pace: Pace
    minutes: float
    """The budget"""
    wanted_px: int
    """Longest side of images that objects would have, where there was time"""
    at_wanted: Pace
    """With images of that size"""


def found(root: Path, seen: Recognised, task: Task, data: Data) -> list[str]:
    """What lies in the folder, on half a screen."""
    objects, sizes = data.train.objects, data.train.table.sizes
    names = data.taxonomy.names
    lines = [f"{root}: {seen.said}"]
    lines += [f"  {note}" for note in data.findings.notes]
    lines.append(
        f"  images      {len(data.train):,} for training, {len(data.val):,} for validation"
    )
    sides = quantiles(sizes.max(axis=1), 0)
    if sides is not None:
        told = f"longest side {sides.least:.0f} to {sides.most:.0f} px, half of them up to {sides.median:.0f}"
        if sides.least == sides.most:
            told = f"longest side {sides.most:.0f} px"
        lines.append(f"  sizes       {told}")
    if data.labels not in EVERY_PIXEL:
        counts = np.bincount(objects.classes, minlength=len(names)).tolist()
        shown = ", ".join(f"{name} {n:,}" for name, n in list(zip(names, counts, strict=True))[:8])
        more = f", ... ({len(names)} classes)" if len(names) > 8 else ""
        per = quantiles(data.train.table.counts, 0)
        lines.append(f"  {data.labels:<11} {shown}{more}")
        assert per is not None
        lines.append(
            f"  an image    {per.least:.0f} to {per.most:.0f} of them, half have up to {per.median:.0f}"
        )
    else:
        lines.append(f"  classes     {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}")
    for kind, count in sorted(data.findings.counts().items()):
        lines.append(f"  {count:,} x {kind}: {KINDS[kind].remedy}")
    others = {
        "detection": "instance_segmentation" if seen.masks else "",
        "instance_segmentation": "detection",
    }
    other = f" (--task {others[task]} for the other)" if others.get(task) else ""
    return [*lines, f"  task        {task}{other}"]


def chosen(choice: Chosen, data: Data) -> list[str]:
    """What was chosen, on the other half of the screen."""
    cfg, recipe, planned = choice.cfg, choice.recipe, choice.plan
    start_of = cfg.model.init_from if cfg.model.backbone is None else cfg.model.backbone
    why = recipe.comments.get("model.backbone" if cfg.model.backbone else "model.init_from", "")
    told = why.splitlines()[0] if why else ""
    lines = [_wrapped("start", told if str(start_of) in told else f"{start_of}, {told}")]
    lines.append(f"  images      {cfg.data.image_size.longest} px")
    queries = recipe.values.get("model.head_args", {}).get("num_queries")
    head = f"{cfg.model.head}, {queries} queries" if queries else str(cfg.model.head)
    lines.append(f"  head        {head}")
    epochs = planned.steps * cfg.train.global_batch_size / len(data.train)
    lines.append(
        f"  length      {planned.steps:,} steps of {cfg.train.global_batch_size} images ({epochs:.0f} passes), "
        f"{planned.evaluations} evaluation{'s' if planned.evaluations > 1 else ''}; a step takes {choice.pace.step_s:.2f} s: about {planned.seconds / 60:.0f} minutes"
    )
    family = get_family(str(cfg.model.head))
    whole = cfg.model.backbone is None
    head_facts = Head(
        str(cfg.model.head), queries, family.few_steps, family.few_steps_source, whole
    )
    train = dataclasses.replace(cfg.train, steps=planned.steps, epochs=None)
    found = advise(dataclasses.replace(cfg, train=train), data, head_facts)
    for advice in sorted(found, key=lambda advice: advice.topic == "steps"):  # its length last
        name, text = _said(advice, choice, data)
        if text:
            lines.append(_wrapped(name, text))
    return lines


def _said(advice: Advice, choice: Chosen, data: Data) -> tuple[str, str]:
    """A row's name and text: an advice without what has just been decided otherwise."""
    if advice.topic == "steps":
        return _too_short(advice, choice, data)
    if advice.topic != "size":
        return "note", advice.text
    px = choice.cfg.data.image_size.longest_px
    if px < choice.wanted_px:
        return "note", f"{advice.told}; with more minutes images have {choice.wanted_px} px"
    if advice.keys.get("data.image_size.longest", 0) > px:
        limit = f"{px} px are the most that is chosen here; larger ones take longer"
        return "note", f"{advice.told}: {limit} (docs/choosing.md, Small objects)"
    return "note", "" if advice.keys else advice.text  # the head cannot have smaller ones


def _too_short(advice: Advice, choice: Chosen, data: Data) -> tuple[str, str]:
    """What comes of too few steps, and how many minutes are enough."""
    batch = choice.cfg.train.global_batch_size
    least = SOME_TIMES * get_family(str(choice.cfg.model.head)).few_steps
    needed = max(advice.keys["train.steps"], least)  # with fewer, images would be smaller again
    minutes = minutes_for(needed, choice.at_wanted, len(data.train), len(data.val), batch)
    if minutes is None:  # of so few images a longer run makes nothing better
        return "note", advice.text
    found = "little or nothing" if choice.plan.steps < LITTLE * needed else "less than it can"
    epochs = choice.plan.steps * batch / len(data.train)
    return "TOO SHORT", (
        f"in {choice.minutes:g} minutes ({choice.plan.steps:,} steps, {epochs:.1f} passes over the images) a "
        f"{choice.cfg.model.head} head from nothing finds {found}: about {minutes:,} minutes are needed ({needed:,} steps "
        f"of images of {choice.wanted_px} px): --minutes {minutes}"
    )


def _wrapped(name: str, text: str) -> str:
    """A row whose text may take several lines."""
    lines = textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False)
    return "\n".join(
        f"  {name if not number else '':<11} {line}" for number, line in enumerate(lines)
    )
