"""The losses of RF-DETR and LW-DETR: several groups of queries, each of which has to find every object, and
classes whose scores are to tell how good the box is. RF-DETR's that finds masks has losses for them as well.

Every term is a sum over this micro-batch and all groups, divided by the boxes of the whole step times the
groups. Sources: Group DETR (https://arxiv.org/abs/2207.13085), LW-DETR (https://arxiv.org/abs/2406.03459),
RF-DETR (https://arxiv.org/abs/2511.09554).
"""

from collections.abc import Mapping
from typing import Any

import torch

from data.batch import Batch
from model.losses.focal import focal_cost
from model.losses.mask_criterion import MaskCriterion, MaskOutputs, targets
from model.losses.matching import CostWeights, box_cost, match, matched_on
from model.losses.quality import QualityLoss, pair_losses
from model.losses.set_criterion import SetOutputs
from model.losses.terms import Counts, Losses, MasksOf, by_layer, fp32, object_counts


class GroupCriterion:
    """Matches the predictions of each group and the objects, and gives the micro-batch's share of the loss."""

    def __init__(self, quality: QualityLoss, config: Any, masks: MaskCriterion | None = None):
        """
        Args:
            config: of the detector: costs, loss coefficients, num_queries (of a group), group_detr.
            masks: whose mask and dice losses and costs come on top, of a detector that finds masks.
        """
        self.quality = quality
        self.config = config
        self.masks = masks
        self.weights = {
            "loss_ce": float(config.class_loss_coefficient),
            "loss_bbox": float(config.bbox_loss_coefficient),
            "loss_giou": float(config.giou_loss_coefficient),
        }
        if masks is not None:
            self.weights |= {"loss_mask": masks.weights.mask, "loss_dice": masks.weights.dice}

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
            parts = self._apart(fp32(logits)), self._apart(fp32(boxes))
            sums = self.sums(*parts, self._masks_apart(outputs.masks), batch)
            terms = {n: v.view(-1, groups).sum(1) / per_box for n, v in sums.items()}
            weighted = [self.weights[name] * value.sum() for name, value in terms.items()]
            total = torch.stack(weighted).sum()
            if outputs.masks is not None:
                # Without objects too every layer of the masks has to get a gradient, of zero.
                total = total + outputs.masks(layers - 1, 0, slice(0, 1)).mean() * 0
        named = by_layer({name: value[:layers] for name, value in terms.items()})
        if outputs.proposals is not None:
            named |= {f"{name}_enc": value[layers] for name, value in terms.items()}
        return Losses(total, named)

    def sums(
        self, logits: torch.Tensor, boxes: torch.Tensor, masks: MasksOf | None, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """Each term of each layer and group, [P], summed over images, queries and boxes.

        Args:
            logits: [P, B, Q, C]. boxes: [P, B, Q, 4]. masks: of part p as if it were a layer.
        """
        c = self.config
        weights = CostWeights(c.class_cost, c.bbox_cost, c.giou_cost)
        objects, numbers = batch.objects, batch.num_objects
        cost = box_cost(focal_cost(logits), boxes, objects, numbers, weights)
        if self.masks is not None and masks is not None:
            given = MaskOutputs(logits, masks)
            goals, known = targets(batch, logits.dtype)
            cost = cost + self.masks.cost_of_masks(given, goals, known, batch)
        queries, places = match(cost, numbers)
        layer, image, query, target = matched_on(logits.device, queries, places)
        losses = pair_losses(self.quality, logits, boxes, (layer, image, query), objects, target)
        sums = {"loss_ce": losses.classes, "loss_bbox": losses.l1, "loss_giou": losses.giou}
        if self.masks is not None and masks is not None:
            mask, dice = self.masks.mask_losses(given, queries, query, target, goals, known)
            sums |= {"loss_mask": mask, "loss_dice": dice}
        return sums

    def _apart(self, values: torch.Tensor) -> torch.Tensor:
        """[L G, B, Q, ...] of [L, B, G Q, ...]: groups as if they were layers."""
        parts = values.unflatten(2, (self.config.group_detr, self.config.num_queries))
        return parts.transpose(1, 2).flatten(0, 1)

    def _masks_apart(self, masks: MasksOf | None) -> MasksOf | None:
        """Masks of the groups as if these were layers."""
        if masks is None:
            return None
        groups, num = self.config.group_detr, self.config.num_queries

        def of_group(part: int, image: int, queries: torch.Tensor | slice) -> torch.Tensor:
            layer, group = divmod(part, groups)
            if isinstance(queries, slice):
                first, last, _ = queries.indices(num)
                return masks(layer, image, slice(first + group * num, last + group * num))
            return masks(layer, image, queries + group * num)

        return of_group
