"""The losses of RF-DETR and LW-DETR: several groups of queries, each of which has to find every object, and
classes whose scores are to tell how good the box is.

Every term is a sum over this micro-batch and all groups, divided by the boxes of the whole step times the
groups. Sources: Group DETR (https://arxiv.org/abs/2207.13085), LW-DETR (https://arxiv.org/abs/2406.03459).
"""

from collections.abc import Mapping
from typing import Any

import torch

from data.batch import Batch
from model.losses.focal import focal_cost
from model.losses.matching import CostWeights, box_cost, match
from model.losses.quality import QualityLoss, pair_losses
from model.losses.set_criterion import SetOutputs
from model.losses.terms import Counts, Losses, by_layer, fp32, object_counts


class GroupCriterion:
    """Matches the predictions of each group and the objects, and gives the micro-batch's share of the loss."""

    def __init__(self, quality: QualityLoss, config: Any):
        """
        Args:
            config: of the detector: costs, loss coefficients, num_queries (of a group), group_detr.
        """
        self.quality = quality
        self.config = config
        self.weights = {
            "loss_ce": float(config.class_loss_coefficient),
            "loss_bbox": float(config.bbox_loss_coefficient),
            "loss_giou": float(config.giou_loss_coefficient),
        }

    def counts(self, batch: Batch) -> Counts:
        """Boxes, those of them that find a query of each group, and images."""
        return object_counts("boxes", batch, self.config.num_queries)

    def __call__(
        self, outputs: SetOutputs, batch: Batch, step_counts: Mapping[str, float]
    ) -> Losses:
        """Terms of layer i < L - 1 end in `_i`, those of proposals in `_enc`.

        Args:
            outputs: queries group by group, [L, B, G Q, ...]; proposals likewise.
        """
        logits, boxes = outputs.logits, outputs.boxes
        if outputs.proposals is not None:
            logits = torch.cat([logits, outputs.proposals[0][None]])
            boxes = torch.cat([boxes, outputs.proposals[1][None]])
        groups, layers = self.config.group_detr, len(outputs.logits)
        per_box = max(step_counts["boxes"] * groups, 1.0)
        with torch.autocast(device_type=logits.device.type, enabled=False):
            sums = self.sums(self._apart(fp32(logits)), self._apart(fp32(boxes)), batch)
            terms = {n: v.view(-1, groups).sum(1) / per_box for n, v in sums.items()}
            weighted = [self.weights[name] * value.sum() for name, value in terms.items()]
            total = torch.stack(weighted).sum()
        named = by_layer({name: value[:layers] for name, value in terms.items()})
        if outputs.proposals is not None:
            named |= {f"{name}_enc": value[layers] for name, value in terms.items()}
        return Losses(total, named)

    def sums(
        self, logits: torch.Tensor, boxes: torch.Tensor, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """Each term of each layer and group, [P], summed over images, queries and boxes.

        Args:
            logits: [P, B, Q, C]. boxes: [P, B, Q, 4].
        """
        c = self.config
        weights = CostWeights(c.class_cost, c.bbox_cost, c.giou_cost)
        objects, numbers = batch.objects, batch.num_objects
        cost = box_cost(focal_cost(logits), boxes, objects, numbers, weights)
        queries, targets = match(cost, numbers)
        layer, image, query = queries.to(logits.device)
        target = targets.to(logits.device)
        losses = pair_losses(self.quality, logits, boxes, (layer, image, query), objects, target)
        return {"loss_ce": losses.classes, "loss_bbox": losses.l1, "loss_giou": losses.giou}

    def _apart(self, values: torch.Tensor) -> torch.Tensor:
        """[L G, B, Q, ...] of [L, B, G Q, ...]: groups as if they were layers."""
        parts = values.unflatten(2, (self.config.group_detr, self.config.num_queries))
        return parts.transpose(1, 2).flatten(0, 1)
