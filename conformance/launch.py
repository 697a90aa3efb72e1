"""Running a framework's own command with a witness beside it, and what was seen."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

WITNESS = Path(__file__).with_name("witness.py")
ERROR = re.compile(
    r"(\[rank\d\]: |error: )*[\w.]*(Error|Exception|error)\b|terminate called|what\(\)"
)
LIMIT_S = 600
"""A run that takes longer has not been measured"""


@dataclass(frozen=True)
class Job:
    """A training run; adapters say it in their framework's words."""

    dataset: Path
    model: Path
    """A tiny checkpoint, as the adapter wrote it"""
    processes: int = 1
    micro_batch: int = 4
    accumulation: int = 1
    steps: int | None = 3
    epochs: int | None = None
    warmup: int = 2
    lr: float = 1e-4
    workers: int = 0
    augment: bool = False
    dropout: bool = False
    checkpoint_every: int | None = None
    resume: bool = False
    evaluate: bool = False
    """At the end; some do so in any case"""
    seed: int = 7


@dataclass
class Seen:
    """What processes of a run did, from their witnesses."""

    status: int
    output: str
    ranks: list[list[dict]] = field(default_factory=list)

    @property
    def steps(self) -> list[dict]:
        """Of each optimizer step of rank 0: lr, norm, weights, and of all ranks: loss, images."""
        taken = [of_rank(events) for events in self.ranks]
        rows = []
        for parts in zip(*taken, strict=False):
            loss = sum(part["loss"] for part in parts) / len(parts)  # DDP averages gradients
            images = sorted(image for part in parts for image in part["images"])
            rows.append({**parts[0], "loss": loss, "images": images})
        return rows

    @property
    def together(self) -> bool:
        """Whether all processes have had the same weights after each step, as one training has."""
        weights = [[step["weights"] for step in of_rank(events)] for events in self.ranks]
        return all(row == weights[0] for row in weights)

    @property
    def evaluated(self) -> Counter[str]:
        """How often each image went forward without a gradient."""
        events = [event for rank in self.ranks for event in rank]
        chosen = [e for e in events if e["kind"] == "images" and not e["learning"]]
        return Counter(image for event in chosen for image in event["images"])

    @property
    def moments(self) -> list[dict]:
        return [e for rank in self.ranks for e in rank if e["kind"] == "moment"]

    def says(self) -> str:
        """The last line that tells of an error, or else the last line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if ERROR.match(line) and "ChildFailed" not in line]
        native = [line for line in lines if line.startswith("what():")]
        return [f"status {self.status}", *lines[-1:], *errors[-1:], *native[-1:]][-1][:200]


def of_rank(events: list[dict]) -> list[dict]:
    """The optimizer steps of one process: the sum of its losses, its images, rate, norm, weights.

    A micro-batch counts once its gradient was taken, and not if that was dropped before the step.
    """
    rows: list[dict] = []
    given: list[str] = []
    micros: list[list[str]] = []
    losses: list[float] = []
    for event in events:
        if event["kind"] == "images" and event["learning"]:
            given = event["images"]
        elif event["kind"] == "backward":
            micros.append(given)
            losses.append(event["loss"])
        elif event["kind"] == "step":
            images = [image for micro in micros for image in micro]
            rows.append({**event, "loss": sum(losses), "images": images, "micros": micros})
        if event["kind"] in ("step", "dropped"):
            micros, losses = [], []
    return rows


class Adapter(Protocol):
    """A framework: how it is called, and what it leaves behind."""

    name: str
    python: str
    plain_by_witness: bool
    """Its script has no key to leave augmentation out"""
    environment: dict[str, str]
    """What it wants to be told of where it runs"""
    saves_steps: bool
    """Checkpoints can be written within an epoch"""

    def versions(self) -> str: ...

    def write_model(self, folder: Path, dropout: bool) -> None:
        """A tiny checkpoint, always the same."""

    def command(self, job: Job, out: Path) -> list[str]:
        """The script and its arguments."""

    def damaged(self, model: Path, folder: Path, how: str) -> tuple[Path, str] | None:
        """A copy of the checkpoint with one tensor `missing` or `misnamed`, and the end of its name."""

    def logged_ap(self, out: Path) -> float | None:
        """The AP that the framework reported at the end."""

    def reload(self, out: Path) -> list[str]:
        """Script and arguments that load what was exported as its documentation says; it is given a
        dataset's folder and a file to write boxes to."""


@dataclass
class Bench:
    """A framework at work in a folder; a job that was run once is not run again."""

    adapter: Adapter
    folder: Path
    done: dict[Any, tuple[Path, Seen]] = field(default_factory=dict)

    def model(self, dropout: bool = False) -> Path:
        folder = self.folder / ("model with dropout" if dropout else "model")
        if not folder.exists():
            self.adapter.write_model(folder, dropout)
        return folder

    def dataset(self, **keys: bool) -> Path:
        from conformance.dataset import write_dataset

        folder = self.folder / "-".join(["data", *sorted(keys)])
        return folder if folder.exists() else write_dataset(folder, **keys)

    def job(self, **keys: Any) -> Job:
        model = self.model(keys.get("dropout", False))
        return Job(**{"dataset": self.dataset(), "model": model, **keys})

    def run(self, job: Job, **asks: Any) -> tuple[Path, Seen]:
        """The run's folder and what was seen; from before, if it is the same."""
        key = (job, tuple(sorted(asks.items())))
        if key not in self.done:
            out = self.folder / f"run{len(list(self.folder.glob('run*.output')))}"
            self.done[key] = (out, self.go_on(job, out, **asks))
        return self.done[key]

    def go_on(self, job: Job, out: Path, **asks: Any) -> Seen:
        """Run in a folder, which may have a run's checkpoints already."""
        command = self.adapter.command(job, out)
        launcher = [self.adapter.python]
        if job.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc_per_node", str(job.processes)]
        notes = out.with_name(f"{out.name}.witness")
        shutil.rmtree(notes, ignore_errors=True)
        asks |= {"plain": not job.augment and self.adapter.plain_by_witness}
        asks |= {"folder": str(out.absolute())}
        environment = {
            **self.environment(),
            "WITNESS": str(notes),
            "WITNESS_ASKS": json.dumps(asks),
            **self.adapter.environment,
        }
        status, output = call([*launcher, str(WITNESS), *command], environment, cwd=self.folder)
        out.with_name(f"{out.name}.output").write_text(output)
        return Seen(status, output, read_notes(notes))

    def environment(self) -> dict[str, str]:
        """One thread, no device, no network, nothing of this repository on the path."""
        environment = {
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            **{"TQDM_DISABLE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"},
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
        }
        environment.pop("PYTHONPATH", None)
        return environment

    def copied(self, out: Path, name: str) -> Path:
        """The run's folder as it is now under another name."""
        copy = self.folder / name
        shutil.rmtree(copy, ignore_errors=True)
        if out.exists():
            shutil.copytree(out, copy, symlinks=True)
        return copy


def call(command: list[str], environment: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Exit status and everything printed; the whole group of processes is killed at the limit."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nended after {LIMIT_S} s"
    return process.returncode, output


def read_notes(folder: Path) -> list[list[dict]]:
    """Events of each rank. A line that was cut by a kill is left out."""
    by_rank: dict[int, list[dict]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_text().split("\n")[:-1]
        events = [json.loads(line) for line in lines]
        by_rank.setdefault(int(file.name.partition("-")[0]), []).extend(events)
    return [by_rank[rank] for rank in sorted(by_rank)]


def resumed(job: Job, **changes: Any) -> Job:
    return dataclasses.replace(job, resume=True, **changes)
