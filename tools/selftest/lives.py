"""Whole small runs in child processes: killed and resumed, exported, and where their time goes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file

from disk import ROOT
from tools.selftest.report import Line, Verdict
from training.shelf import step_name

STEPS = 40
SAVED_EVERY = 5
PROFILED = 20
LIFE_S = 300.0
"""A child that takes longer hangs"""
OF_A_LAUNCHER = (
    *(
        "ACCELERATE_",
        "TORCHELASTIC_",
        "SLURM_",
        "PMI",
        "PET_",
        "OMPI_",
        "GROUP_",
        "ROLE_",
        "MASTER_",
    ),
    *("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"),
)
"""Beginnings of variables that tell a process that it is one of several"""
SMALL = (
    *("--data.synthetic_train", "64", "--data.synthetic_val", "32", "--data.cache_features", "0"),
    *("--data.num_workers", "0", "--run.tracker", "none", "--run.draw_batches", "0"),
    *("--run.pictures", "false"),
    *("--train.steps", str(STEPS), "--train.checkpoint_every", str(SAVED_EVERY)),
    *(
        "--train.evaluate_every",
        "null",
        "--train.ema_decay",
        "0.9",
        "--train.keep_checkpoints",
        "1",
    ),
)


COMPARED = ("AP", "AP50", "AR_100")
"""Metrics that the log and the exported model share"""
SAME_METRIC = 1e-4


class ChildError(Exception):
    """A child run ended otherwise than it should."""


@dataclass
class Child:
    """A Python process in a process group of its own, as a world of one."""

    process: subprocess.Popen
    output: IO[str]
    """What it prints: a file, since nobody reads while it runs"""

    def kill(self) -> None:
        """With everything that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def printed(self) -> str:
        """So far."""
        self.output.seek(0)
        return self.output.read()


def child(*command: str) -> Child:
    """Start one."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(OF_A_LAUNCHER)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the child)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Child(process, output)


def start(*arguments: str) -> Child:
    """A small run of the embedded default, if nothing else is said."""
    return child(str(ROOT / "train_accelerate.py"), *SMALL, *arguments)


def finish(started: Child) -> str:
    """What a process printed until its end.

    Raises:
        ChildError: if it failed, or takes too long.
    """
    try:
        status = started.process.wait(LIFE_S)
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"a run of {STEPS} steps took more than {LIFE_S:.0f} s") from error
    finally:
        started.kill()  # also where this process is asked to end
    output = started.printed()
    if status:
        last = (output.strip().splitlines() or ["nothing was printed"])[-1]
        raise ChildError(f"a run ended with status {status}: {last}")
    return output


def recipe(device: torch.device) -> tuple[str, ...]:
    """Arguments of runs that are bit-equal on this device: on GPUs few heads have kernels that are."""
    if device.type == "cpu":
        return ()
    masks = str(ROOT / "configs" / "synthetic_masks.yaml")
    return ("--config", masks, "--run.deterministic", "true")


def undisturbed(folder: Path, *recipe: str) -> str:
    """What a run to its end printed, with a profile of its steps."""
    return finish(start(*recipe, "--run.output_dir", str(folder), "--run.profile", str(PROFILED)))


def kill_and_resume(folder: Path, whole: Path, *recipe: str) -> Line:
    """Kill a run after its first checkpoint, resume it, and compare it with one that was not killed.

    Args:
        whole: folder of that run, of the same recipe.
    """
    name = "kill and resume"
    own = (*recipe, "--run.output_dir", str(folder))
    running = start(*own)
    saved = folder / "checkpoints" / "last"
    until = time.monotonic() + LIFE_S
    try:
        while (
            running.process.poll() is None and not saved.is_symlink() and time.monotonic() < until
        ):
            time.sleep(0.005)
    finally:
        running.kill()
    if not saved.is_symlink():
        last = (running.printed().strip().splitlines() or ["nothing was printed"])[-1]
        return Line.of(
            name, False, f"there was no checkpoint before the run ended: {last}", "see what it says"
        )
    killed_at = int(saved.readlink().name.rpartition("-")[2])
    if (folder / "DONE").exists() or killed_at >= STEPS:
        return Line(
            name, Verdict.UNKNOWN, f"{STEPS} steps were over before the run could be killed"
        )
    output = finish(start(*own, "--run.resume", "auto"))
    began = re.search(r"resumed at step (\d+)", output)
    if began is None:
        return Line.of(name, False, "the run began anew", "look at its checkpoints folder")
    differing = [
        f"{file}: {tensor}"
        for file in ("model/trainable", "model/average", "state/optimizer")
        for tensor in _differing(*(_tensors(run, file) for run in (whole, folder)))
    ]
    return Line.of(
        name,
        not differing,
        f"killed after step {killed_at}, resumed at step {began[1]}: weights, average and optimizer of step {STEPS} "
        + (
            f"differ in {len(differing)} tensors, first {differing[0]}"
            if differing
            else "are bit-equal"
        ),
        "if `repeatable kernels` holds, report this as a bug; if it does not, this follows from it",
    )


def _tensors(run: Path, file: str) -> dict:
    return load_file(run / "checkpoints" / step_name(STEPS) / f"{file}.safetensors")


def _differing(one: dict, other: dict) -> Sequence[str]:
    return [
        name
        for name in sorted(set(one) | set(other))
        if name not in one or name not in other or not one[name].equal(other[name])
    ]


def export_as_logged(folder: Path) -> Line:
    """Whether what was exported has the AP that was logged, when it is loaded and evaluated anew."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = next(row for row in reversed(rows) if "eval/AP" in row)
    given = ("--model", str(folder / "export"), "--config", str(folder / "config.yaml"))
    output = finish(child("-m", "tools.evaluate", *given))
    found = json.loads(output.strip().splitlines()[-1])
    apart = max(abs(logged[f"eval/{metric}"] - found[metric]) for metric in COMPARED)
    figures = ", ".join(f"{m} {logged[f'eval/{m}']:.4f} and {found[m]:.4f}" for m in COMPARED)
    return Line.of(
        "export against log",
        apart < SAME_METRIC,
        f"{figures} (log, and the exported model loaded and evaluated anew)",
        "what is shipped is not what was measured: report this as a bug, with this output",
    )


def where_time_goes(output: str) -> list[Line]:
    """The table of the profiled steps, by a run's output."""
    rows = re.findall(r"^(\S[\w ]*?)\s{2,}([\d.]+)\s+([\d.]+) %$", output, re.MULTILINE)
    parts = [f"{name} {share} %" for name, _, share in rows if name != "step"]
    step = next((seconds for name, seconds, _ in rows if name == "step"), None)
    if step is None:
        return [Line("where time goes", Verdict.UNKNOWN, "the run printed no profile")]
    return [
        Line("where time goes", Verdict.MEASURED, f"{float(step):.3f} s a step: {', '.join(parts)}")
    ]
