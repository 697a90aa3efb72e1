"""This repository, by `train_accelerate.py`."""

import json
import sys
from pathlib import Path

from conformance.adapters import tiny
from conformance.adapters.packages import versions_of
from conformance.dataset import SIDE
from conformance.launch import Job

ROOT = Path(__file__).resolve().parents[2]


class Ours:
    name = "ours"
    plain_by_witness = False
    environment: dict[str, str] = {}
    saves_steps = True

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python

    def versions(self) -> str:
        return versions_of(self.python, ("torch", "accelerate", "transformers"))

    def write_model(self, folder: Path, dropout: bool) -> None:
        tiny.write_detr(folder, dropout)

    def damaged(self, model: Path, folder: Path, how: str) -> tuple[Path, str]:
        return tiny.damage(model, folder, how)

    def command(self, job: Job, out: Path) -> list[str]:
        batch = job.micro_batch * job.processes * job.accumulation
        augment = [{"HorizontalFlip": {"p": 0.5}}, {"RandomBrightnessContrast": {"p": 1.0}}]
        keys = {
            "run.output_dir": out,
            "run.seed": job.seed,
            "run.resume": "auto" if job.resume else "never",
            "run.tracker": "none",
            "run.log_every": 1,
            "run.draw_batches": 0,
            "run.pictures": False,
            "data.source": "coco",
            "data.path": job.dataset,
            "data.val_split": "val",
            "data.image_size.longest": SIDE,
            "data.num_workers": job.workers,
            "data.augment": json.dumps(augment if job.augment else []),
            "model.backbone": "null",
            "model.freeze": "none",
            "model.head": "null",
            "model.init_from": job.model,
            "optim.lr": job.lr,
            "optim.backbone_lr": job.lr,
            "optim.max_grad_norm": 0,
            "optim.warmup_steps": job.warmup,
            "train.steps": "null" if job.epochs else job.steps,
            "train.epochs": job.epochs or "null",
            "train.global_batch_size": batch,
            "train.micro_batch_size": job.micro_batch,
            "train.checkpoint_every": job.checkpoint_every or "null",
        }
        arguments = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        return [str(ROOT / "train_accelerate.py"), "--config", str(empty(out)), *arguments]

    def logged_ap(self, out: Path) -> float | None:
        files = sorted((out / "eval").glob("step-*/metrics.json"))
        return json.loads(files[-1].read_text())["AP"] if files else None

    def reload(self, out: Path) -> list[str]:
        return [str(Path(__file__).with_name("reload_detr.py")), str(out / "export")]


def empty(out: Path) -> Path:
    """A configuration file that says nothing, since the command line says all."""
    file = out.with_name("empty.yaml")
    file.write_text("{}\n")
    return file
