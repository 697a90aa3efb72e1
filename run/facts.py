"""What run.json records: everything needed to know what a run was."""

import platform
from importlib.metadata import version
from typing import Any

from accelerate import Accelerator

from data.build import Data
from model.build import Detector

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


def run_facts(accelerator: Accelerator, detector: Detector, data: Data) -> dict[str, Any]:
    """Versions, sizes and fingerprints."""
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "world_size": accelerator.num_processes,
        "device": str(accelerator.device),
        "backbone_sha256": detector.backbone.fingerprint,
        "backbone_tensors": detector.backbone.num_tensors,
        "backbone_is_local": detector.backbone.is_local,
        "data_sha256": data.fingerprint(),
        "train_images": len(data.train),
        "val_images": len(data.val),
        "labels": list(data.taxonomy.names),
        "image_processor": type(detector.trainable.processor).__name__,
    }
