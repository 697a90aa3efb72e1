"""RF-DETR, the package rfdetr, in an environment of its own."""

import csv
import json
import math
import os
import re
import subprocess
from pathlib import Path

from conformance.adapters.packages import versions_of
from conformance.dataset import NUM_TRAIN, as_roboflow
from conformance.launch import Job

SCRIPT = str(Path(__file__).with_name("run_rfdetr.py"))


class RfDetr:
    """RFDETRNano of 64 px with random weights; a step is a batch, and lengths are whole epochs."""

    name = "rfdetr"
    plain_by_witness = False
    environment: dict[str, str] = {}
    saves_steps = False

    def __init__(self, path: Path, python: str) -> None:
        self.python = str(path)

    def versions(self) -> str:
        return versions_of(self.python, ("rfdetr", "pytorch_lightning", "torch", "transformers"))

    def write_model(self, folder: Path, dropout: bool) -> None:
        folder.mkdir()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [self.python, SCRIPT, "--write", str(folder / "weights.pth")]
        subprocess.run(command, check=True, env=environment, capture_output=True)

    def damaged(self, model: Path, folder: Path, how: str) -> tuple[Path, str] | None:
        """The same two kinds of tensors as elsewhere: one of the backbone, one of the decoder."""
        import torch

        folder.mkdir()
        content = torch.load(model / "weights.pth", weights_only=True)
        tensors = content["model"]
        end = {"missing": "layer.0.attention.attention.query.weight", "misnamed": "linear1.weight"}
        names = [n for n in tensors if n.endswith(end[how])]
        name = names[0] if names else next(n for n in tensors if n.endswith(".weight"))
        tensor = tensors.pop(name)
        if how == "misnamed":
            tensors[f"{name}s"] = tensor
        torch.save(content, folder / "weights.pth")
        return folder, name

    def command(self, job: Job, out: Path) -> list[str]:
        batch = job.micro_batch * job.processes * job.accumulation
        an_epoch = math.ceil(NUM_TRAIN / batch)
        training = {
            "dataset_dir": str(as_roboflow(job.dataset)),
            "output_dir": str(out),
            "epochs": job.epochs or math.ceil((job.steps or 1) / an_epoch),
            "batch_size": job.micro_batch,
            "grad_accum_steps": job.accumulation,
            "lr": job.lr,
            "lr_encoder": job.lr,
            "warmup_epochs": job.warmup / an_epoch,
            "clip_max_norm": 0.0,
            "checkpoint_interval": 1,
            "seed": job.seed,
            "num_workers": job.workers,
            "multi_scale": False,
            "expanded_scales": False,
            "tensorboard": False,
            "progress_bar": None,
            "accelerator": "cpu",
            "devices": job.processes,
            "strategy": "ddp" if job.processes > 1 else "auto",
        }
        if not job.augment:
            training |= {"aug_config": {}, "scale_jitter": False}
        if job.resume and (checkpoint := newest(out)):
            training["resume"] = str(checkpoint)
        model = {"pretrain_weights": str(job.model / "weights.pth")}
        return [SCRIPT, json.dumps(model), json.dumps(training)]

    def logged_ap(self, out: Path) -> float | None:
        with (out / "metrics.csv").open() as file:
            logged = [row.get("val/mAP_50_95") for row in csv.DictReader(file)]
        values = [float(value) for value in logged if value]
        return values[-1] if values else None

    def reload(self, out: Path) -> list[str]:
        return [SCRIPT, "--reload", str(out / "checkpoint_best_total.pth")]


def newest(out: Path) -> Path | None:
    """The trainer's own full checkpoint of the latest epoch, which its documentation resumes from."""
    named = [(re.search(r"(\d+)\.ckpt$", f.name), f) for f in out.glob("*.ckpt")]
    found = [(int(match[1]), file) for match, file in named if match]
    return max(found)[1] if found else None
