"""The tracker that gets a run's numbers and pictures: a guest, without which training goes on."""

import contextlib
import importlib.util
import io
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from errors import UserError
from settings.keys import Config
from settings.walk import config_to_dict

FALLBACK_PROJECT = "permafrost"


def check_tracker(name: str) -> None:
    """
    Raises:
        UserError: if the tracker is not installed; accelerate would train on without a word.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(
            f"run.tracker {name}: is not installed; install it with pip install {name}, or set "
            "--run.tracker none (metrics.jsonl has every number in any case)"
        )


def project_of(cfg: Config) -> str:
    """run.project, or the dataset's name: runs that can be compared stand side by side."""
    if cfg.run.project:
        return cfg.run.project
    name = Path(cfg.data.path).name if cfg.data.path else cfg.data.source
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or FALLBACK_PROJECT


class Tracker:
    """What a run tells its tracker. After the first thing that goes wrong it is told nothing more."""

    def __init__(self, accelerator: Accelerator, cfg: Config, name: str | None, numbers: Path):
        """
        Args:
            name: of the run. numbers: file that has them in any case.
        """
        self._kind, self._numbers = cfg.run.tracker, numbers
        self._accelerator: Accelerator | None = accelerator
        arguments = {"trackio": {"name": name, "resume": "allow"}}
        flat = {
            f"{s}.{k}": str(v) for s, keys in config_to_dict(cfg).items() for k, v in keys.items()
        }
        project = project_of(cfg)
        with self._quiet():
            self._tell(
                lambda tracker: tracker.init_trackers(
                    project,
                    config=flat,
                    init_kwargs=arguments if self._kind == "trackio" else {},
                )
            )
        self.shown_by: str | None = None
        """The command that shows its page, where trackio was not let say so"""
        if self._kind == "trackio" and self._accelerator and not sys.stdout.isatty():
            self.shown_by = f"trackio show --project {shlex.quote(project)}"

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Those of the values that are numbers."""
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        self._tell(lambda tracker: tracker.log(numbers, step=step))

    def pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Pictures by name, as far as the files are there. Of trackio alone."""
        there = {name: file for name, file in files.items() if file.is_file()}
        if self._kind != "trackio" or not there:
            return

        def log(tracker: Accelerator) -> None:
            import trackio

            shown = {name: trackio.Image(str(file)) for name, file in there.items()}
            tracker.log(shown, step=step)

        self._tell(log)

    def histograms(self, step: int, counts: Mapping[str, np.ndarray]) -> None:
        """By name, how many of [0, 1] cut into equal parts. Of trackio alone."""
        if self._kind != "trackio" or not counts:
            return

        def log(tracker: Accelerator) -> None:
            import trackio

            shown = {
                name: trackio.Histogram(np_histogram=(n, np.linspace(0, 1, len(n) + 1)))
                for name, n in counts.items()
            }
            tracker.log(shown, step=step)

        self._tell(log)

    def finish(self) -> None:
        """Say that nothing more comes."""
        with self._quiet():
            self._tell(self._finish)
        self._accelerator = None

    def _finish(self, tracker: Accelerator) -> None:
        for guest in tracker.trackers:
            if self._kind == "trackio":
                import trackio

                trackio.finish()  # not guest.finish(), after which the end of the process does it again
            else:
                guest.finish()

    def _quiet(self) -> contextlib.AbstractContextManager[object]:
        """Around calls in which trackio prints, with codes for colours: a log that is a file does without."""
        if self._kind != "trackio" or sys.stdout.isatty():
            return contextlib.nullcontext()
        return contextlib.redirect_stdout(io.StringIO())

    def _tell(self, call: Callable[[Accelerator], object]) -> None:
        if self._accelerator is None:
            return
        try:
            call(self._accelerator)
        except Exception as error:
            self._accelerator = None
            warnings.warn(
                f"the tracker failed and is left out from here on ({type(error).__name__}: {error}); "
                f"all numbers are in {self._numbers}",
                stacklevel=2,
            )
