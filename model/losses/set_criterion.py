"""The set criterion of DETR-like heads: Hungarian matching, then class, L1 and GIoU losses.

Every term is a sum over this micro-batch divided by a count of the whole step, over all ranks and
micro-batches. So the terms of all micro-batches add up to the loss of one big batch, whatever the
number of processes and however the batch is cut.

Sources: DETR (https://arxiv.org/abs/2005.12872), Deformable DETR (https://arxiv.org/abs/2010.04159),
GIoU (https://arxiv.org/abs/1902.09630), focal loss (https://arxiv.org/abs/1708.02002).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from transformers import PretrainedConfig

FOCAL_GAMMA = 2.0


@dataclass(frozen=True)
class StepCounts:
    """What a step's losses are divided by: sums over all ranks and micro-batches."""

    num_boxes: float
    num_matched: float
    """Boxes that find a query: at most num_queries per image"""
    num_images: float

    @classmethod
    def of_batch(cls, boxes_per_image: Sequence[int], num_queries: int) -> "StepCounts":
        """Counts of some images alone."""
        matched = sum(min(n, num_queries) for n in boxes_per_image)
        return cls(float(sum(boxes_per_image)), float(matched), float(len(boxes_per_image)))


class SetCriterion:
    """Stands in for a detection model's `loss_function`; gives the micro-batch's share of the loss.

    `step_counts` must be set before each step; without it, the batch at hand is the whole step.
    """

    def __init__(self, config: PretrainedConfig, focal: bool):
        """
        Args:
            config: of the detector: cost and loss coefficients, eos_coefficient or focal_alpha.
            focal: sigmoid focal loss over C classes, else softmax over C + 1.
        """
        self.config = config
        self.focal = focal
        self.step_counts: StepCounts | None = None
        self.proposals: tuple[torch.Tensor, torch.Tensor] | None = None
        """What a two-stage head proposed in the forward pass at hand"""

    def __call__(
        self,
        logits: torch.Tensor,
        labels: list[dict[str, Any]],
        device: torch.device,
        pred_boxes: torch.Tensor,
        config: PretrainedConfig,
        outputs_class: torch.Tensor | None = None,
        outputs_coord: torch.Tensor | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], None]:
        """
        Args:
            logits: [B, Q, C or C + 1]; pred_boxes: [B, Q, 4] cxcywh in [0, 1].
            outputs_class, outputs_coord: the same of all L decoder layers, [L, B, Q, ...].

        Returns:
            The weighted sum (scalar), its terms by name (those of layer i < L - 1 end in `_i`, those
            of proposals in `_enc`), and None for transformers' auxiliary outputs, which nothing reads.
        """
        if outputs_class is None or outputs_coord is None or not config.auxiliary_loss:
            outputs_class, outputs_coord = logits[None], pred_boxes[None]
        with torch.autocast(device_type=logits.device.type, enabled=False):
            terms = self.layer_losses(_fp32(outputs_class), _fp32(outputs_coord), labels)
            proposed = self.proposal_losses(labels)
            weights = {
                "loss_ce": 1.0,
                "loss_bbox": float(config.bbox_loss_coefficient),
                "loss_giou": float(config.giou_loss_coefficient),
            }
            all_terms = [*terms.items(), *proposed.items()]
            loss = sum(weights[name] * values.sum() for name, values in all_terms)
        last = outputs_class.shape[0] - 1
        by_name = {
            name if layer == last else f"{name}_{layer}": values[layer]
            for name, values in terms.items()
            for layer in range(last + 1)
        }
        by_name |= {f"{name}_enc": values[0] for name, values in proposed.items()}
        return loss, by_name, None  # type: ignore[return-value]

    def proposal_losses(self, labels: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The same terms for the proposals of a two-stage head, [1]; every object is of class 0.

        As in Deformable DETR, appendix A.4: the first stage only tells objects from background.
        """
        if self.proposals is None:
            return {}
        logits, boxes = self.proposals
        self.proposals = None
        objects = [
            {"boxes": t["boxes"], "class_labels": torch.zeros_like(t["class_labels"])}
            for t in labels
        ]
        return self.layer_losses(_fp32(logits)[None], _fp32(boxes)[None], objects)

    def layer_losses(
        self, logits: torch.Tensor, boxes: torch.Tensor, labels: list[dict[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """Each term of each decoder layer, [L], before weighting."""
        num_queries = logits.shape[2]
        counts = self.step_counts or StepCounts.of_batch(
            [len(label["class_labels"]) for label in labels], num_queries
        )
        per_box = max(counts.num_boxes, 1.0)
        queries, targets = match(
            self.cost(logits, boxes, labels), [len(t["boxes"]) for t in labels]
        )
        layer, image, query = queries.to(logits.device)
        classes = torch.cat([t["class_labels"] for t in labels])[targets.to(logits.device)]
        goal = torch.cat([t["boxes"] for t in labels]).to(boxes.dtype)[targets.to(boxes.device)]
        found = boxes[layer, image, query]
        num_layers = logits.shape[0]
        l1 = (found - goal).abs().sum(-1).view(num_layers, -1).sum(1)
        giou = (1 - box_giou(found, goal)).view(num_layers, -1).sum(1)
        class_sum, class_count = self.class_loss(logits, (layer, image, query), classes, counts)
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
        counts: StepCounts,
    ) -> tuple[torch.Tensor, float]:
        """Sum of each layer's classification loss, [L], and the step's count to divide it by."""
        if self.focal:
            goal = torch.zeros_like(logits)
            goal[(*matched, classes)] = 1.0
            loss = sigmoid_focal_loss(logits, goal, self.config.focal_alpha)
            return loss.sum((1, 2, 3)), max(counts.num_boxes, 1.0)
        no_object = logits.shape[-1] - 1
        goal = torch.full(logits.shape[:3], no_object, device=logits.device)
        goal[matched] = classes
        weight = torch.ones(no_object + 1, dtype=logits.dtype, device=logits.device)
        weight[no_object] = self.config.eos_coefficient
        loss = F.cross_entropy(logits.flatten(0, 2), goal.flatten(), weight, reduction="none")
        unmatched = counts.num_images * logits.shape[2] - counts.num_matched
        total_weight = counts.num_matched + self.config.eos_coefficient * unmatched
        return loss.view(logits.shape[0], -1).sum(1), total_weight

    @torch.no_grad()
    def cost(
        self, logits: torch.Tensor, boxes: torch.Tensor, labels: list[dict[str, Any]]
    ) -> torch.Tensor:
        """Matching cost [L, B, Q, T] of every query and target; T is the most targets per image.

        Columns beyond an image's own targets mean nothing.
        """
        most = max(len(label["boxes"]) for label in labels)
        classes = torch.zeros(len(labels), most, dtype=torch.int64, device=logits.device)
        goals = torch.full((len(labels), most, 4), 0.5, dtype=boxes.dtype, device=boxes.device)
        for row, label in enumerate(labels):
            classes[row, : len(label["boxes"])] = label["class_labels"]
            goals[row, : len(label["boxes"])] = label["boxes"].to(boxes.dtype)
        where = classes[None, :, None, :].expand(*logits.shape[:3], most)
        if self.focal:
            scores = focal_cost(logits).gather(-1, where)
        else:
            scores = -logits.softmax(-1).gather(-1, where)
        distance = torch.cdist(boxes, goals[None].expand(len(boxes), -1, -1, -1), p=1)
        giou = box_giou(boxes[..., :, None, :], goals[None, :, None])
        c = self.config
        return c.class_cost * scores + c.bbox_cost * distance - c.giou_cost * giou


def match(cost: torch.Tensor, num_targets: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cheapest one-to-one assignment for every decoder layer and image, with one copy to the host.

    Args:
        cost: [L, B, Q, T]; only the first num_targets[b] columns of image b count.

    Returns:
        int64 [3, L K]: layer, image and query of the matches, layer by layer, and int64 [L K]: the
        target of each, numbered through the batch. K is the same in every layer.
    """
    largest = torch.finfo(cost.dtype).max
    host = torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest).cpu().numpy()
    first = np.cumsum([0, *num_targets])
    queries, targets = [np.zeros((3, 0), np.int64)], [np.zeros(0, np.int64)]
    for layer in range(host.shape[0]):
        for image, num in enumerate(num_targets):
            rows, columns = linear_sum_assignment(host[layer, image, :, :num])
            queries.append(np.stack([np.full_like(rows, layer), np.full_like(rows, image), rows]))
            targets.append(first[image] + columns)
    return (
        torch.from_numpy(np.concatenate(queries, axis=1)),
        torch.from_numpy(np.concatenate(targets)),
    )


def sigmoid_focal_loss(logits: torch.Tensor, goal: torch.Tensor, alpha: float) -> torch.Tensor:
    """Focal loss of every element, same shape as `logits`."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    miss = probability * (1 - goal) + (1 - probability) * goal
    balance = alpha * goal + (1 - alpha) * (1 - goal)
    return balance * miss**FOCAL_GAMMA * cross_entropy


def focal_cost(logits: torch.Tensor, alpha: float = 0.25) -> torch.Tensor:
    """Cost of calling a query each class, same shape as `logits` (Deformable DETR's matcher)."""
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** FOCAL_GAMMA * -(p + 1e-8).log()
    negative = (1 - alpha) * p**FOCAL_GAMMA * -(1 - p + 1e-8).log()
    return positive - negative


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] x1 y1 x2 y2 of cxcywh boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def box_giou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of cxcywh boxes whose leading dimensions broadcast, [...]."""
    a, b = corners(first), corners(second)
    overlap = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap.prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - intersection
    hull = (torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).prod(-1)
    return intersection / union - (hull - union) / hull


def _fp32(tensor: torch.Tensor) -> torch.Tensor:
    """At least fp32; fp64 stays, for exactness tests."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
