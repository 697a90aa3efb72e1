"""An exported detector, loaded for the tools."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)
from transformers.utils import logging as transformers_logging

from data.canvas import CanvasRule
from errors import UserError
from model.build import family_of
from model.normalization import Normalization
from model.source import SAFE, local_folder
from model.trainable import Trainable


@dataclass(frozen=True)
class LoadedDetector:
    """A model folder with what its image processor says about preparing images."""

    trainable: Trainable
    rule: CanvasRule

    @property
    def names(self) -> list[str]:
        """Class names by index."""
        labels = self.trainable.model.config.id2label
        return [labels[index] for index in range(len(labels))]

    @property
    def has_masks(self) -> bool:
        """Whether it finds masks."""
        family = self.trainable.family
        return family is not None and family.task != "detection"


def load_detector(name: str) -> LoadedDetector:
    """Load a folder made by training (`export/`) or a detector of the Hub.

    Raises:
        UserError: if it is no detector of transformers, or resizes in a way not known here.
    """
    transformers_logging.disable_progress_bar()
    folder = local_folder(name, None, "--model")
    if not (folder / "config.json").is_file():
        hint = f"; try {folder / 'export'}" if (folder / "export").is_dir() else ""
        raise UserError(f"--model {name}: has no config.json, so it is not a model folder{hint}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = _auto_class(config, name)
        model = kind.from_pretrained(folder, config=config, dtype=torch.float32, **SAFE)
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {name}: {' '.join(str(error).split())}") from error
    names = config.id2label
    if sorted(names) != list(range(len(names))) or not all(
        isinstance(n, str) for n in names.values()
    ):
        raise UserError(
            f"--model {name}: id2label in config.json does not name classes 0, 1, 2, ..."
        )
    settings = processor.to_dict()
    try:
        rule = CanvasRule.of_processor(settings)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error
    normalization = Normalization.of_settings(settings)
    family = family_of(model)
    if family is None and kind is not AutoModelForObjectDetection:
        raise UserError(f"--model {name}: {type(model).__name__} is not supported here")
    trainable = Trainable(model, processor, normalization, family)
    return LoadedDetector(trainable.eval(), rule)


def _auto_class(config: PretrainedConfig, name: str) -> Any:
    """
    Raises:
        UserError: if it is the config of neither a detector nor a segmenter.
    """
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        return AutoModelForObjectDetection
    if type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return AutoModelForUniversalSegmentation
    raise UserError(
        f"--model {name}: model type {config.model_type!r} is neither a detector nor a segmenter of "
        "transformers"
    )
