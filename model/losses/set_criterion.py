"""The set criterion of DETR-like heads: Hungarian matching, then class, L1 and GIoU losses.

Every term is a sum over this micro-batch divided by a count of the whole step, over all ranks and
micro-batches. So the terms of all micro-batches add up to the loss of one big batch, whatever the
number of processes and however the batch is cut.

Sources: DETR (https://arxiv.org/abs/2005.12872), Deformable DETR (https://arxiv.org/abs/2010.04159).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PretrainedConfig

from data.batch import Batch
from data.objects import Objects
from model.losses.boxes import box_giou
from model.losses.focal import focal_cost, sigmoid_focal_loss
from model.losses.matching import CostWeights, box_cost, mark, match, matched_on
from model.losses.terms import (
    Counts,
    Losses,
    MasksOf,
    by_layer,
    class_cross_entropy,
    fp32,
    object_counts,
    weighed,
)


@dataclass(frozen=True)
class SetOutputs:
    """What a DETR-like head predicts for a batch; layer L - 1 is the last decoder layer."""

    logits: torch.Tensor
    """[L, B, Q, C or C + 1]"""
    boxes: torch.Tensor
    """[L, B, Q, 4] cxcywh in [0, 1]"""
    proposals: tuple[torch.Tensor, torch.Tensor] | None = None
    """Logits [B, S, C] and boxes [B, S, 4] proposed before the decoder, if they are to be trained"""
    masks: MasksOf | None = None
    """Of a head that finds masks as well; layer L is that of the proposals"""


class SetCriterion:
    """Matches predictions and objects, and gives the micro-batch's share of the loss."""

    def __init__(self, config: PretrainedConfig, focal: bool, num_queries: int):
        """
        Args:
            config: of the detector: cost and loss coefficients, eos_coefficient or focal_alpha.
            focal: sigmoid focal loss over C classes, else softmax over C + 1.
            num_queries: most objects that can be matched in an image.
        """
        self.config = config
        self.focal = focal
        self.num_queries = num_queries

    def counts(self, batch: Batch) -> Counts:
        """Boxes, those of them that find a query, and images."""
        return object_counts("boxes", batch, self.num_queries)

    def __call__(
        self, outputs: SetOutputs, batch: Batch, step_counts: Mapping[str, float]
    ) -> Losses:
        """Terms of layer i < L - 1 end in `_i`, those of proposals in `_enc`."""
        objects, numbers = batch.objects, batch.num_objects
        with torch.autocast(device_type=outputs.logits.device.type, enabled=False):
            logits, boxes = fp32(outputs.logits), fp32(outputs.boxes)
            terms = self.layer_losses(logits, boxes, objects, numbers, step_counts)
            proposed = self.proposal_losses(outputs.proposals, objects, numbers, step_counts)
            weights = {
                "loss_ce": 1.0,
                "loss_bbox": float(self.config.bbox_loss_coefficient),
                "loss_giou": float(self.config.giou_loss_coefficient),
            }
            weighted = [weights[n] * v.sum() for n, v in [*terms.items(), *proposed.items()]]
            total = sum(weighted[1:], weighted[0])
        return Losses(
            total, by_layer(terms) | {f"{name}_enc": v[0] for name, v in proposed.items()}
        )

    def proposal_losses(
        self,
        proposals: tuple[torch.Tensor, torch.Tensor] | None,
        objects: Objects,
        num_objects: Sequence[int],
        step_counts: Mapping[str, float],
    ) -> dict[str, torch.Tensor]:
        """The same terms for the proposals of a two-stage head, [1]; every object is of class 0.

        As in Deformable DETR, appendix A.4: the first stage only tells objects from background. What the own
        class of an object weighs, it weighs here as well.
        """
        if proposals is None:
            return {}
        logits, boxes = (fp32(tensor)[None] for tensor in proposals)
        objects = replace(objects, classes=torch.zeros_like(objects.classes))
        return self.layer_losses(logits, boxes, objects, num_objects, step_counts)

    def layer_losses(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        objects: Objects,
        num_objects: Sequence[int],
        step_counts: Mapping[str, float],
    ) -> dict[str, torch.Tensor]:
        """Each term of each decoder layer, [L], before weighting."""
        per_box = max(step_counts["boxes"], 1.0)
        queries, targets = match(self.cost(logits, boxes, objects, num_objects), num_objects)
        layer, image, query, target = matched_on(logits.device, queries, targets)
        classes = objects.classes[target]
        goal = objects.boxes.to(boxes.dtype)[target]
        found = boxes[layer, image, query]  # [L K, 4]
        num_layers = logits.shape[0]
        l1 = (found - goal).abs().sum(-1).view(num_layers, -1).sum(1)
        giou = (1 - box_giou(found, goal)).view(num_layers, -1).sum(1)
        weights = None if objects.weights is None else objects.weights[target]
        class_sum, class_count = self.class_loss(
            logits, (layer, image, query), classes, weights, step_counts
        )
        return {
            "loss_ce": class_sum / class_count,
            "loss_bbox": l1 / per_box,
            "loss_giou": giou / per_box,
        }

    def class_loss(
        self,
        logits: torch.Tensor,
        matched: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        classes: torch.Tensor,
        weights: torch.Tensor | None,
        step_counts: Mapping[str, float],
    ) -> tuple[torch.Tensor, float]:
        """Sum of each layer's classification loss, [L], and the step's count to divide it by."""
        if self.focal:
            goal = torch.zeros_like(logits)
            own = (*matched, classes)
            mark(goal, own, 1.0)
            loss = weighed(sigmoid_focal_loss(logits, goal, self.config.focal_alpha), own, weights)
            return loss.sum((1, 2, 3)), max(step_counts["boxes"], 1.0)
        return class_cross_entropy(
            logits, matched, classes, weights, step_counts, self.config.eos_coefficient
        )

    @torch.no_grad()
    def cost(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        objects: Objects,
        num_objects: Sequence[int],
    ) -> torch.Tensor:
        """Matching cost [L, B, Q, T] of every query and object."""
        class_costs = focal_cost(logits) if self.focal else -logits.softmax(-1)
        c = self.config
        weights = CostWeights(c.class_cost, c.bbox_cost, c.giou_cost)
        return box_cost(class_costs, boxes, objects, num_objects, weights)
