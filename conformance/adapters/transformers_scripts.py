"""transformers' scripts for detection: examples/pytorch/object-detection of its repository, given by a path."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.adapters import tiny
from conformance.adapters.packages import versions_of
from conformance.dataset import SIDE, as_mask_parquet, as_parquet
from conformance.launch import Job

RELOAD = Path(__file__).with_name("reload_detr.py")
PACKAGES = ("transformers", "accelerate", "torch", "albumentations")


def newest(out: Path, prefix: str) -> Path | None:
    """The checkpoint folder with the highest number, as a user would give it."""
    named = [(re.fullmatch(rf"{prefix}(\d+)", f.name), f) for f in out.glob(f"{prefix}*")]
    found = [(int(match[1]), folder) for match, folder in named if match]
    return max(found)[1] if found else None


class TransformersScript:
    """What the scripts have in common."""

    plain_by_witness = True
    environment = {
        "ACCELERATE_USE_CPU": "true"
    }  # without, processes on CPUs train each its own model
    saves_steps = True

    def __init__(self, script: Path, python: str) -> None:
        self.script, self.python = script, python

    def versions(self) -> str:
        return versions_of(self.python, PACKAGES)

    def write_model(self, folder: Path, dropout: bool) -> None:
        tiny.write_detr(folder, dropout)

    def damaged(self, model: Path, folder: Path, how: str) -> tuple[Path, str] | None:
        return tiny.damage(model, folder, how)

    def reload(self, out: Path) -> list[str]:
        return [str(RELOAD), str(out)]

    def data(self, job: Job) -> dict[str, Any]:
        """Arguments that say what the images are."""
        return {"dataset_name": as_parquet(job.dataset), "image_square_size": SIDE}

    def keys(self, job: Job, out: Path, checkpoints: str) -> dict[str, Any]:
        """Arguments that all scripts have.

        Args:
            checkpoints: what the names of their folders begin with.
        """
        keys = {
            **self.data(job),
            "model_name_or_path": job.model,
            "output_dir": out,
            "seed": job.seed,
            "learning_rate": job.lr,
            "per_device_train_batch_size": job.micro_batch,
            "per_device_eval_batch_size": 8,
            "gradient_accumulation_steps": job.accumulation,
            "dataloader_num_workers": job.workers,
        }
        if job.epochs:
            keys["num_train_epochs"] = job.epochs
        if job.resume and (checkpoint := newest(out, checkpoints)):
            keys["resume_from_checkpoint"] = checkpoint
        return keys

    def words(self, keys: Mapping[str, Any]) -> list[str]:
        """The script and its arguments."""
        return [
            str(self.script),
            *(word for key, value in keys.items() for word in (f"--{key}", str(value))),
        ]


class Trainer(TransformersScript):
    """run_object_detection.py, with the arguments of its README."""

    name = "transformers-trainer"

    def command(self, job: Job, out: Path) -> list[str]:
        keys = {
            **self.keys(job, out, "checkpoint-"),
            "warmup_steps": job.warmup,
            "max_grad_norm": 1e6,
            "remove_unused_columns": "false",
            "eval_do_concat_batches": "false",
            "report_to": "none",
            "logging_steps": 1,
            "save_total_limit": 3,
            "save_strategy": "steps" if job.checkpoint_every else "no",
        }
        if job.checkpoint_every:
            keys["save_steps"] = job.checkpoint_every
        if not job.epochs:
            keys["max_steps"] = job.steps
        evaluating = ["--do_eval"] if job.evaluate else []
        return [*self.words(keys), "--do_train", *evaluating, "--use_cpu"]

    def logged_ap(self, out: Path) -> float | None:
        file = out / "test_results.json"
        return json.loads(file.read_text())["test_map"] if file.exists() else None


class NoTrainer(TransformersScript):
    """run_object_detection_no_trainer.py."""

    name = "transformers-no-trainer"

    def command(self, job: Job, out: Path) -> list[str]:
        keys = {**self.keys(job, out, "step_"), "num_warmup_steps": job.warmup}
        if job.checkpoint_every:
            keys["checkpointing_steps"] = job.checkpoint_every
        if not job.epochs:
            keys["max_train_steps"] = job.steps
        return self.words(keys)

    def logged_ap(self, out: Path) -> float | None:
        file = out / "all_results.json"
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        return next((v for k, v in content.items() if k.removeprefix("test_") == "map"), None)


class Instances(NoTrainer):
    """run_instance_segmentation_no_trainer.py; it has one data worker at least."""

    name = "transformers-instances"

    def write_model(self, folder: Path, dropout: bool) -> None:
        tiny.write_mask2former(folder, dropout)

    def damaged(self, model: Path, folder: Path, how: str) -> tuple[Path, str] | None:
        return tiny.damage(model, folder, how, tiny.MASK2FORMER_ENDS)

    def data(self, job: Job) -> dict[str, Any]:
        size = {"image_height": SIDE, "image_width": SIDE}
        return {"dataset_name": as_mask_parquet(job.dataset), **size}

    def command(self, job: Job, out: Path) -> list[str]:
        job = dataclasses.replace(job, workers=max(job.workers, 1))
        return [*super().command(job, out), "--do_reduce_labels"]

    def reload(self, out: Path) -> list[str]:
        return [str(RELOAD.with_name("reload_mask2former.py")), str(out)]
