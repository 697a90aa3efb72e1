"""The labels of a folder as training reads them, and the task that they are for."""

import dataclasses
from pathlib import Path

from data.build import CHECK, check_findings, read_data
from data.dataset import Data
from data.findings import Findings
from data.sources.recognise import Recognised
from errors import UserError
from settings.keys import Config, DataConfig
from settings.tasks import EVERY_PIXEL, LABELS, Task
from tools.advice import mended
from tools.given_folder import check_command

TASKS: tuple[Task, ...] = ("detection", "instance_segmentation", "semantic_segmentation")


class UnreadError(UserError):
    """The labels are not those of a task."""


def read_for(root: Path, seen: Recognised, given: Task | None) -> tuple[Task, Config, Data]:
    """The task that is asked for, or that the labels are for, and the data as training reads them.

    Raises:
        UserError: naming the tasks that the labels are for, if they are not for the given one.
    """
    try:
        return _read_for(root, seen, given)
    except UserError as error:  # there is no configuration yet
        text = str(error).replace(CHECK, check_command(root, _own(root, seen)))
        text = text.replace("set data.allow_unlabelled true", "give --allow-unlabelled")
        raise UserError(text) from error


def _read_for(root: Path, seen: Recognised, given: Task | None) -> tuple[Task, Config, Data]:
    first = given or _task(seen)
    try:
        return first, *_read(root, seen, first, Config())
    except UnreadError as error:
        fitting = [task for task in TASKS if task != first and _can_be_read(root, seen, task)]
        if not fitting:
            raise
        if given is not None:
            others = " or ".join(fitting)
            raise UserError(
                f"--task {given}: the labels are for --task {others}: {error}"
            ) from error
    return fitting[0], *_read(root, seen, fitting[0], Config())


def _task(seen: Recognised) -> Task:
    if seen.source == "label_maps":
        return "semantic_segmentation"
    return "instance_segmentation" if seen.masks else "detection"


def _can_be_read(root: Path, seen: Recognised, task: Task) -> bool:
    try:
        _data(_own(root, seen), Findings(), task)
    except UserError:
        return False
    return True


def _own(root: Path, seen: Recognised) -> DataConfig:
    return DataConfig(source=seen.source, path=str(root), **seen.keys)  # type: ignore[arg-type]


def _data(cfg: DataConfig, findings: Findings, task: Task) -> Data:
    """
    Raises:
        UserError: if there is nothing in it for the task.
    """
    data = read_data(cfg, Config().run.seed, findings, LABELS[task])
    if data.train.dense and LABELS[task] not in EVERY_PIXEL:
        raise UserError(
            f"{cfg.path}: has label maps, which know the class of a pixel and no objects"
        )
    return data


def _read(root: Path, seen: Recognised, task: Task, cfg: Config) -> tuple[Config, Data]:
    """The data as training reads them, with mistakes that a key mends mended.

    Raises:
        UnreadError: if the labels are not those of the task. UserError: for other mistakes.
    """
    model = dataclasses.replace(cfg.model, task=task)
    cfg = dataclasses.replace(cfg, data=_own(root, seen), model=model)
    findings = Findings()
    try:
        data = _data(cfg.data, findings, task)
    except UserError as error:
        check_findings(findings, strict=False, max_bad_images=None)  # these explain more
        raise UnreadError(str(error)) from error
    cfg, keys = mended(cfg, findings)
    if keys:
        for key, value in keys.items():
            reason = next(f.detail for f in findings if f"{key} {value}" in f.detail)
            print(f"set for you: {key} {value} ({reason})")
        data = _data(cfg.data, Findings(), task)
    check_findings(data.findings, strict=False, max_bad_images=None)
    return cfg, data
