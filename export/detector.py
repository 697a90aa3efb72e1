"""An exported detector, loaded for the tools."""

from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import logging as transformers_logging

from errors import UserError
from model.normalization import Normalization
from model.source import local_folder
from settings.keys import ImageSizeConfig


@dataclass(frozen=True)
class LoadedDetector:
    """A model folder with what its image processor says about preparing images."""

    model: Any
    processor: Any
    normalization: Normalization
    image_size: ImageSizeConfig

    @property
    def names(self) -> list[str]:
        """Class names by index."""
        labels = self.model.config.id2label
        return [labels[index] for index in range(len(labels))]


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
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForObjectDetection.from_pretrained(folder, config=config)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {name}: {' '.join(str(error).split())}") from error
    settings = processor.to_dict()
    size = settings["size"]
    if "max_height" in size:
        image_size = ImageSizeConfig(longest=size["max_height"])
    elif "shortest_edge" in size and "longest_edge" in size:
        image_size = ImageSizeConfig(longest=size["longest_edge"], shortest=size["shortest_edge"])
    else:
        raise UserError(
            f"--model {name}: its image processor resizes to {size}, not supported here"
        )
    model.eval()
    return LoadedDetector(model, processor, Normalization.of_settings(settings), image_size)
