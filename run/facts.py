"""What run.json records: everything needed to know what a run was."""

import contextlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.dataset import Data
from disk import ROOT
from model.build import Detector
from run.startup import code_digest

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "albumentations",
    "safetensors",
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def code_facts() -> dict[str, Any]:
    """Commit of the project's own code, whether files differ from it, and a digest of them all."""
    facts: dict[str, Any] = {"commit": None, "dirty": None, "sha256": code_digest(ROOT)[:16]}
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or no checkout
        if Path(_git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            facts["commit"] = _git("rev-parse", "HEAD")
            facts["dirty"] = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return facts


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=20
    ).stdout.strip()


def run_facts(accelerator: Accelerator, detector: Detector, data: Data) -> dict[str, Any]:
    """Versions, sizes and fingerprints."""
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "code": code_facts(),
        "threads": torch.get_num_threads(),
        "world_size": accelerator.num_processes,
        "device": str(accelerator.device),
        "backbone_sha256": detector.backbone.fingerprint,
        "backbone_tensors": detector.backbone.num_tensors,
        "backbone_is_local": detector.backbone.is_local,
        "neck": detector.neck,
        "data_sha256": data.fingerprint(),
        "train_images": len(data.train),
        "val_images": len(data.val),
        "labels": list(data.taxonomy.names),
        "class_weights": None if data.class_weights is None else data.class_weights.tolist(),
        "image_processor": type(detector.trainable.processor).__name__,
    }
