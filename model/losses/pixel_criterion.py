"""The criterion of heads that give each pixel a class: cross-entropy over all known pixels of the step.

As in `set_criterion`, the term is a sum over this micro-batch divided by a count of the whole step. Targets
are the parts that each class covers of squares of 4 x 4 pixels: a square on an edge is of two classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from data.batch import Batch
from data.masks import CELL_PIXELS
from model.losses.terms import Counts, Losses, fp32


class PixelCriterion:
    """Cross-entropy of logits [B, C, h, w] with the parts of classes."""

    def counts(self, batch: Batch) -> Counts:
        """Pixels of which the class is known, each as often as its class weighs."""
        masks, weights = batch.objects.masks, batch.objects.weights
        assert masks is not None
        if weights is None:
            return Counts({"pixels": int(masks.sum(dtype=torch.int64))})
        pixels = masks.sum((1, 2), dtype=torch.int64)
        return Counts({"pixels": float((pixels * weights.double()).sum())})

    def __call__(
        self, outputs: torch.Tensor, batch: Batch, step_counts: Mapping[str, float]
    ) -> Losses:
        """
        Args:
            outputs: logits [B, C, h, w], made as large as the squares where they are not.
        """
        with torch.autocast(device_type=outputs.device.type, enabled=False):
            logits = fp32(outputs)
            objects = batch.objects
            assert objects.masks is not None
            shape = objects.masks.shape[1:]
            if logits.shape[2:] != shape:
                logits = F.interpolate(logits, size=tuple(shape), mode="bilinear")
            # Rows of a flat table: adding up in place would be in another order on every device.
            chosen = logits.log_softmax(1)[objects.image, objects.classes]
            covered = objects.masks.to(logits.dtype) / CELL_PIXELS
            if objects.weights is not None:
                covered = covered * objects.weights.to(logits.dtype)[:, None, None]
            total = -(chosen * covered).sum()
            # A micro-batch without objects has to give every parameter a gradient as well, of zero.
            nothing = logits.mean() * 0
            loss = (total + nothing) / ((step_counts["pixels"] or 1.0) / CELL_PIXELS)
        return Losses(loss, {"loss_ce": loss})
