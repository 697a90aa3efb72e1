"""An exported detector, loaded for the tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)
from transformers.utils import logging as transformers_logging

from data.batch import Batch, Sample
from data.canvas import CanvasRule, round_up, side_multiple
from data.feed.collate import collate
from data.feed.transforms import resize
from data.objects import Objects
from data.tiles import Tiles, windows_of
from errors import UserError, refusing
from evaluation.predictions import Predictions
from evaluation.windows import EQUAL_SCORES, on_images
from export.recommended import FILE, recommended_threshold, recommended_tiles
from model.build import TASK_KEY
from model.heads.family import PROBE_PX, HeadFamily
from model.heads.registry import HEADS, get_family
from model.neck import plain_config
from model.normalization import Normalization
from model.source import SAFE, local_folder, quiet_transformers
from model.trainable import STUFF_KEY, Trainable
from settings.image_keys import TilesConfig
from settings.tasks import EVERY_PIXEL, LABELS, Labels, Task

INTEGERS = ("num_batches_tracked", "_index", "position_ids", "progress")
"""Ends of the names of tensors that are no weights"""


@dataclass(frozen=True)
class Views:
    """What a model gets of one image."""

    samples: Sequence[Sample]
    windows: np.ndarray
    """int64 [n, 4]: x, y, width, height of each, px of the image"""
    size: tuple[int, int]
    """(height, width) of the image, px"""


@dataclass(frozen=True)
class LoadedDetector:
    """A model folder with what its image processor says about preparing images."""

    trainable: Trainable
    rule: CanvasRule
    threshold: float | None = None
    """The lowest score that it is recommended to be used with, if its folder says so"""
    tiles: TilesConfig = TilesConfig()
    """What it was trained on windows of images with"""

    @property
    def names(self) -> list[str]:
        """Class names by index."""
        labels = self.trainable.model.config.id2label
        return [labels[index] for index in range(len(labels))]

    @property
    def labels(self) -> Labels:
        """What it finds."""
        return LABELS[self.trainable.task]

    def sample(self, image: np.ndarray) -> Sample:
        """What the model gets of uint8 [H, W, 3]."""
        height, width = image.shape[:2]
        small = resize(image, self.rule.resized(height, width))
        return Sample(small, Objects.none(), 0, 0, (height, width), self.rule.full)

    def views(self, image: np.ndarray) -> "Views":
        """What the model gets of uint8 [H, W, 3]: windows of it, if it was trained on such."""
        size = (image.shape[0], image.shape[1])
        windows = np.array([[0, 0, size[1], size[0]]])
        if self.tiles.size is not None:
            windows = windows_of(*size, self.tiles)
        parts = (image[y : y + h, x : x + w] for x, y, w, h in windows.tolist())
        return Views([self.sample(part) for part in parts], windows, size)

    def find_on(
        self, images: Sequence["Views"], threshold: float, at_once: int | None = None
    ) -> list[Objects]:
        """What is in each image, as `find`; what two windows have found is there once.

        Args:
            at_once: views in one pass; default: all of them.
        """
        samples = [sample for own in images for sample in own.samples]
        step = at_once or max(1, len(samples))
        parts = (samples[start : start + step] for start in range(0, len(samples), step))
        cut = self.tiles.size is not None
        lowest = threshold * EQUAL_SCORES if cut else threshold  # of what makes its parts give way
        found = [objects for part in parts for objects in self.find(part, lowest)]
        if not cut:
            return found
        tiles = Tiles(
            np.repeat(np.arange(len(images)), [len(own.samples) for own in images]),
            np.concatenate([own.windows for own in images]),
            np.array([own.size for own in images]),
        )
        objects = Objects.of_images(found)
        whole = on_images(Predictions(objects), tiles, max(1, len(objects))).objects
        return whole.take(whole.scores > threshold).by_image(len(images))

    def find(self, samples: Sequence[Sample], threshold: float) -> list[Objects]:
        """What is in each image by falling score: boxes xywh in px of the image, masks on it.

        Args:
            threshold: only scores above it.
        """
        batch = collate(samples).to(self.trainable.model.device)
        found = self.trainable.predict(batch, threshold=threshold)
        return found.by_image(len(samples))


def load_detector(name: str, task: Task | None = None) -> LoadedDetector:
    """Load a folder made by training (`export/`) or a detector of the Hub.

    Args:
        task: what a model of several tasks is to be used for; default: what it was trained for here, else
            the first of them.

    Raises:
        UserError: if it is no detector of transformers, or resizes in a way not known here.
    """
    transformers_logging.disable_progress_bar()
    folder = local_folder(name, None, "--model")
    families = [
        get_family(head) for head in HEADS
    ]  # which makes their classes known to transformers
    if not (folder / "config.json").is_file():
        hint = f"; try {folder / 'export'}" if (folder / "export").is_dir() else ""
        raise UserError(f"--model {name}: has no config.json, so it is not a model folder{hint}")
    with refusing(f"--model {name}"):
        with quiet_transformers():
            config = plain_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
            kind = _auto_class(config, name)
            model, info = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, **SAFE
            )
        _check_weights(model, info, folder)
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        )
        names = config.id2label
        if sorted(names) != list(range(len(names))) or not all(
            isinstance(n, str) for n in names.values()
        ):
            raise UserError(
                f"--model {name}: id2label in config.json does not name classes 0, 1, 2, ..."
            )
        stuff = getattr(config, STUFF_KEY, [])
        if not isinstance(stuff, list) or not all(type(c) is int and c in names for c in stuff):
            raise UserError(f"--model {name}: {STUFF_KEY} in config.json is no list of classes")
        settings = processor.to_dict()
        rule = CanvasRule.of_processor(settings)
        family = next((family for family in families if family.model_class is type(model)), None)
        if family is None and kind is not AutoModelForObjectDetection:
            raise ValueError(f"{type(model).__name__} is not supported here")
        normalization = Normalization.of_settings(settings)
        used_for = _task_of(family, config, task)
        trainable = Trainable(model, processor, normalization, family, used_for).eval()
        multiple = min(rule.multiple, PROBE_PX)
        side = round_up(PROBE_PX, multiple)
        if family is not None and family.chooses_queries:
            strides = [*family.level_strides(config, ()), *family.side_multiples(config)]
            side = family.smallest_side(config, (), side_multiple(strides))
        _try_out(trainable, side)
    threshold, tiles = recommended_threshold(folder), recommended_tiles(folder)
    if tiles.size is not None and LABELS[used_for] in EVERY_PIXEL:
        raise UserError(
            f"--model {name}: {FILE} says that images are cut into windows, which {used_for} does not have; delete "
            "its tiles"
        )
    return LoadedDetector(trainable, rule, threshold, tiles)


def _task_of(family: HeadFamily | None, config: PretrainedConfig, wanted: Task | None) -> Task:
    """
    Raises:
        ValueError: if the model is for other tasks than the wanted one.
    """
    tasks = ("detection",) if family is None else tuple(family.tasks)
    trained: Any = getattr(config, TASK_KEY, None)
    if wanted is not None and wanted not in tasks:
        raise ValueError(f"it is for {' or '.join(tasks)}, not {wanted}")
    if wanted is None:
        return trained if trained in tasks else tasks[0]
    if trained in tasks and trained != wanted:
        raise ValueError(f"it was trained for {trained}, not {wanted}")
    return wanted


def _check_weights(model: PreTrainedModel, info: Mapping[str, Any], folder: Path) -> None:
    """
    Raises:
        ValueError: if a tensor is missing in the files, is not read from them, or is not finite.
    """
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Counters of batches do nothing in prediction.
        found = sorted(str(key) for key in info[what] if "num_batches_tracked" not in str(key))
        if found:
            kind = what.removesuffix("_keys")
            raise ValueError(f"{len(found)} {kind} tensor(s) in its weights, first: {found[0]}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name} is not finite")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                kind = tensors.get_slice(name).get_dtype()
                if not kind.startswith(("F", "BF")) and not name.endswith(INTEGERS):
                    raise ValueError(f"tensor {name} has the type {kind}")


def _try_out(trainable: Trainable, side: int) -> None:
    """Predict on a blank image of `side` px: whatever the settings are, they fit each other."""
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    mask = torch.ones(1, side, side, dtype=torch.bool)
    trainable.predict(Batch(pixels, mask, Objects.none(), [0], orig_sizes=[(side, side)]), 1)


def _auto_class(config: PretrainedConfig, name: str) -> Any:
    """
    Raises:
        UserError: if it is the config of neither a detector nor a segmenter.
    """
    of_masks: Any = MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING.get(type(config), None)
    if of_masks is not None and of_masks.__name__ in (config.architectures or ()):
        return AutoModelForInstanceSegmentation  # RF-DETR's config is that of its detector too
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        return AutoModelForObjectDetection
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return AutoModelForSemanticSegmentation
    if type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return AutoModelForUniversalSegmentation
    raise UserError(
        f"--model {name}: model type {config.model_type!r} is neither a detector nor a segmenter of "
        "transformers"
    )
