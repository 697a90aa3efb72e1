"""The module that is trained: an untouched transformers model with its losses and predictions."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from data.batch import Batch
from data.objects import Objects
from devices import sent
from model.finding import BOXES, fused
from model.given_maps import giving
from model.heads.family import HeadFamily, call_with_mask
from model.losses.terms import Counts, Losses
from model.neck import inner_backbone
from model.normalization import Normalization
from settings.tasks import Task

NO_THRESHOLD = -1.0
PREDICT = ("predict", "predict_with_flat")
"""Methods of a Trainable besides `forward` that read its weights"""
STUFF_KEY = "stuff_classes"
"""Entry of a panoptic model's config: classes whose segments of an image are one"""


class Trainable(nn.Module):
    """What training, evaluation, prediction and the check of an export use of a detector.

    `forward` is what DDP and autocast wrap; `predict` is not, and runs in the weights' precision.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        normalization: Normalization,
        family: HeadFamily | None,
        task: Task = "detection",
    ):
        """
        Args:
            model: a transformers model. processor: its image processor.
            family: of its head; without one it predicts, and cannot be trained.
            task: one of the family's, by which its outputs are read.
        """
        super().__init__()
        self.model = model
        self.processor = processor
        self.normalization = normalization
        self.family = family
        self.task = task
        self.finder = BOXES if family is None else family.tasks[task]
        self.criterion = None if family is None else family.criterion(model.config)

    def counts(self, batch: Batch) -> Counts:
        """What the step needs from this micro-batch before `forward`."""
        assert self.criterion is not None
        return self.criterion.counts(batch)

    def forward(self, batch: Batch, step_counts: Mapping[str, float]) -> Losses:
        """The micro-batch's share of the step's losses.

        Args:
            step_counts: those of `counts`, over all micro-batches and ranks.
        """
        assert self.family is not None
        assert self.criterion is not None
        with self._given(batch):
            outputs = self.family.outputs(self.model, self._pixels(batch), batch, step_counts)
        return self.criterion(outputs, batch, step_counts)

    @torch.no_grad()
    def predict(
        self, batch: Batch, max_detections: int | None = None, threshold: float = NO_THRESHOLD
    ) -> Objects:
        """What is found on a batch: boxes xywh in px of the decoded images, classes, scores, and masks
        on these if the model finds masks.

        Args:
            max_detections: the highest-scored of each image; default: all.
            threshold: only scores above it.

        Returns: numpy columns, image by image, by falling score.
        """
        outputs, sizes = self._raw(batch)
        return self.found(outputs, sizes, max_detections, threshold)

    @torch.no_grad()
    def predict_with_flat(
        self, batch: Batch, max_detections: int, flat_threshold: float
    ) -> tuple[Objects, Objects | None]:
        """As `predict`, and what a pipeline of transformers makes of the same outputs, where no two masks
        overlap.

        Args:
            flat_threshold: of the pipeline, and of what is found where that depends on it.

        Returns: None in its place for boxes and regions, which are the same there.
        """
        outputs, sizes = self._raw(batch)
        lowest = flat_threshold if self.finder.thresholded else NO_THRESHOLD
        whole = self.found(outputs, sizes, max_detections, lowest)
        if self.finder.find_flat is None:
            return whole, None
        return whole, self.finder.find_flat(outputs, self.processor, sizes, flat_threshold)

    def found(
        self, outputs: Any, sizes: torch.Tensor, most: int | None, threshold: float
    ) -> Objects:
        """What `predict` makes of the model's own outputs; sizes: (height, width) of the decoded images."""
        found = self.finder.find(outputs, self.processor, sizes, most, threshold)
        if self.task != "panoptic_segmentation":
            return found
        found = fused(found, getattr(self.model.config, STUFF_KEY, ()))
        return found.take(np.lexsort((-found.scores, found.image)))

    def _raw(self, batch: Batch) -> tuple[Any, torch.Tensor]:
        """The model's own outputs, and (height, width) of the decoded images, int64 [B, 2]."""
        call = call_with_mask if self.family is None else self.family.call
        with self._given(batch):
            outputs = call(self.model, self._pixels(batch), batch.pixel_mask)
        return outputs, sent(torch.tensor(batch.orig_sizes), batch.pixel_mask.device)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Before the first step: what the head has to know of training images, not augmented."""
        if self.family is None or self.family.prepare is None:
            return
        was_training = self.training
        self.eval()
        self.family.prepare(self.model, ((self._pixels(b), b.pixel_mask) for b in batches))
        self.train(was_training)

    def at(self, part: float) -> None:
        """Before a step: what part of all steps is done, from 0 to 1."""
        if self.family is not None and self.family.anneal is not None:
            self.family.anneal(self.model, part)

    def _given(self, batch: Batch) -> AbstractContextManager[None]:
        """Inside of it the backbone gives the batch's own maps, if it has some."""
        if not batch.maps:
            return nullcontext()
        assert self.family is not None
        backbone = inner_backbone(self.family.backbone_of(self.model))
        return giving(backbone, [stored.to(self.model.dtype) for stored in batch.maps])

    def _pixels(self, batch: Batch) -> torch.Tensor:
        if batch.maps:  # nothing looks at them
            return torch.zeros(1, dtype=self.model.dtype, device=batch.pixel_mask.device).expand(
                batch.pixel_values.shape
            )
        return self.normalization(batch.pixel_values, batch.pixel_mask).to(self.model.dtype)
