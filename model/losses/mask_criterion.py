"""The criterion of mask heads: Hungarian matching of whole masks, then class, mask and dice losses.

As in `set_criterion`, every term is a sum over this micro-batch divided by a count of the whole step.
Masks are compared in squares of 4 x 4 pixels, of which the target is the covered part; squares that are
padded or ignored take no part, in proportion to their ignored pixels.

Sources: MaskFormer (https://arxiv.org/abs/2107.06278), dice loss (https://arxiv.org/abs/1606.04797).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from data.batch import Batch
from data.masks import CELL_PIXELS, CELL_PX
from model.losses.focal import GAMMA, sigmoid_focal_loss
from model.losses.matching import match, matched_on, per_image
from model.losses.terms import (
    Counts,
    Losses,
    MasksOf,
    by_layer,
    class_cross_entropy,
    fp32,
    object_counts,
)

SQUARES_AT_ONCE = 1 << 21
"""Of the masks of an image and layer that get a loss; of more, they are computed again in the backward pass"""
ALPHA = 0.25
"""Weight of covered squares in the focal loss"""


@dataclass(frozen=True)
class MaskOutputs:
    """What a mask head predicts for a batch; layer L - 1 is the last decoder layer."""

    logits: torch.Tensor
    """[L, B, Q, C + 1]"""
    masks: MasksOf


@dataclass(frozen=True)
class MaskWeights:
    """Weights of the terms, in the loss and in the matching cost alike."""

    classes: float
    mask: float
    dice: float
    no_object: float
    """Weight of a query without an object in the class loss"""


class MaskCriterion:
    """Matches predicted masks and objects, and gives the micro-batch's share of the loss."""

    def __init__(self, weights: MaskWeights, num_queries: int, focal: bool):
        """
        Args:
            num_queries: most objects that can be matched in an image.
            focal: focal loss for masks (MaskFormer), else cross-entropy.
        """
        self.weights = weights
        self.num_queries = num_queries
        self.focal = focal

    def counts(self, batch: Batch) -> Counts:
        """Masks, those of them that find a query, and images."""
        return object_counts("masks", batch, self.num_queries)

    def __call__(
        self, outputs: MaskOutputs, batch: Batch, step_counts: Mapping[str, float]
    ) -> Losses:
        """Terms of layer i < L - 1 end in `_i`."""
        with torch.autocast(device_type=outputs.logits.device.type, enabled=False):
            logits = fp32(outputs.logits)
            goals, known = targets(batch, logits.dtype)
            cost = self.cost(outputs, logits, goals, known, batch)
            queries, places = match(cost, batch.num_objects)
            layer, image, query, found = matched_on(logits.device, queries, places)
            weights = batch.objects.weights
            class_sum, class_count = class_cross_entropy(
                logits,
                (layer, image, query),
                batch.objects.classes[found],
                None if weights is None else weights[found],
                step_counts,
                self.weights.no_object,
            )
            mask_sums, dice_sums = self.mask_losses(outputs, queries, query, found, goals, known)
            per_mask = max(step_counts["masks"], 1.0)
            terms = {
                "loss_ce": class_sum / class_count,
                "loss_mask": mask_sums / per_mask,
                "loss_dice": dice_sums / per_mask,
            }
            of_terms = (self.weights.classes, self.weights.mask, self.weights.dice)
            parts = [w * v.sum() for w, v in zip(of_terms, terms.values(), strict=True)]
        return Losses(sum(parts[1:], parts[0]), by_layer(terms))

    @torch.no_grad()
    def cost(
        self,
        outputs: MaskOutputs,
        logits: torch.Tensor,
        goals: torch.Tensor,
        known: torch.Tensor,
        batch: Batch,
    ) -> torch.Tensor:
        """Matching cost [L, B, Q, T] of every query and object; T is the most objects of an image."""
        classes = per_image(batch.objects.classes, batch.num_objects, 0)
        where = classes[None, :, None].expand(*logits.shape[:3], -1)
        scores = logits.softmax(-1).gather(-1, where)
        return self.cost_of_masks(outputs, goals, known, batch) - self.weights.classes * scores

    @torch.no_grad()
    def cost_of_masks(
        self, outputs: MaskOutputs, goals: torch.Tensor, known: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """The part of the masks in the matching cost, [L, B, Q, T].

        One image and layer at a time: memory holds the masks of one image's queries.
        """
        layers, images, queries, _ = outputs.logits.shape
        cost = goals.new_zeros(layers, images, queries, max(batch.num_objects))
        own_goals = goals.split(list(batch.num_objects))
        for image, number in enumerate(batch.num_objects):
            if not number:
                continue
            for layer in range(layers):
                masks = fp32(outputs.masks(layer, image, slice(None)))
                shape = masks.shape[-2:]
                goal = _in_shape(own_goals[image], shape).flatten(1)
                weight = _in_shape(known[image][None], shape).flatten()
                own = self.weights.mask * self._mask_cost(masks.flatten(1), goal, weight)
                own += self.weights.dice * _dice_cost(masks.flatten(1), goal, weight)
                cost[layer, image, :, :number] = own
        return cost

    def mask_losses(
        self,
        outputs: MaskOutputs,
        queries: torch.Tensor,
        query: torch.Tensor,
        places: torch.Tensor,
        goals: torch.Tensor,
        known: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the mask and the dice losses of each layer's matched masks, [L] each.

        Args:
            queries: int64 [3, K] on the host: layer, image, query of every match. query, places: int64 [K]
                on the device: its query, and its object, numbered through the batch.
        """
        layers = outputs.logits.shape[0]
        sums = [[goals.new_zeros(()), goals.new_zeros(())] for _ in range(layers)]
        numbers = Counter(zip(*queries[:2].tolist(), strict=True))  # layer by layer, image by image
        shares = list(numbers.values())
        own = zip(numbers, query.split(shares), places.split(shares), strict=True)
        for (layer, image), chosen, targets in own:
            most = max(1, SQUARES_AT_ONCE // known[image].numel())
            parts = list(zip(chosen.split(most), targets.split(most), strict=True))
            for part, target in parts:
                given = (outputs.masks, layer, image, part, goals[target], known[image])
                if len(parts) == 1:
                    found = self._sums(*given)
                else:  # of many large masks, those of one part at a time are kept
                    found = checkpoint(self._sums, *given, use_reentrant=False)
                sums[layer] = [total + own for total, own in zip(sums[layer], found, strict=True)]
        mask_sums, dice_sums = zip(*sums, strict=True)
        # A micro-batch without objects has to give every parameter a gradient as well, of zero.
        nothing = fp32(outputs.masks(layers - 1, 0, slice(0, 1))).mean() * 0
        return torch.stack(mask_sums) + nothing, torch.stack(dice_sums)

    def _sums(
        self,
        masks_of: MasksOf,
        layer: int,
        image: int,
        queries: torch.Tensor,
        goal: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the mask and the dice losses of some queries' masks."""
        masks = fp32(masks_of(layer, image, queries))
        if masks.shape[-2:] != goal.shape[-2:]:
            masks = F.interpolate(masks[None], size=goal.shape[-2:], mode="bilinear")[0]
        return self._mask_loss(masks, goal, weight), _dice_loss(masks, goal, weight)

    def _mask_loss(
        self, masks: torch.Tensor, goal: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Sum over masks [k, h, w] of their mean over the known squares; weight [h, w]."""
        if self.focal:
            loss = sigmoid_focal_loss(masks, goal, ALPHA)
        else:
            loss = F.binary_cross_entropy_with_logits(masks, goal, reduction="none")
        return (loss * weight).sum() / weight.sum().clamp(min=1e-6)

    def _mask_cost(
        self, masks: torch.Tensor, goal: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """[Q, T] of masks [Q, S] and goals [T, S]; weight [S]."""
        covered = F.softplus(-masks)  # cross-entropy of what is covered, and of what is free
        free = masks + covered
        if self.focal:
            score = masks.sigmoid()
            covered = ALPHA * (1 - score) ** GAMMA * covered
            free = (1 - ALPHA) * score**GAMMA * free
        free = free * weight
        total = (covered * weight - free) @ goal.T + free.sum(-1, keepdim=True)
        return total / weight.sum().clamp(min=1e-6)


def targets(batch: Batch, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts [n, h, w] of the known squares that every object covers, and of squares that are known,
    [B, h, w]."""
    assert batch.objects.masks is not None
    known = F.avg_pool2d(batch.pixel_mask.to(dtype)[:, None], CELL_PX)[:, 0]
    if batch.ignored is not None:
        known = (known - batch.ignored.to(dtype) / CELL_PIXELS).clamp(min=0)
    own = known[batch.objects.image]
    covered = batch.objects.masks.to(dtype) / CELL_PIXELS / own.clamp(min=1 / CELL_PIXELS)
    return covered.clamp(max=1), known


def _dice_cost(masks: torch.Tensor, goal: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[Q, T] of masks [Q, S] and goals [T, S]; weight [S]."""
    part = masks.sigmoid() * weight
    both = 2 * part @ goal.T
    total = part.sum(-1)[:, None] + (goal * weight).sum(-1)[None]
    return 1 - (both + 1) / (total + 1)


def _dice_loss(masks: torch.Tensor, goal: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum of the dice losses of masks [k, h, w]; weight [h, w]."""
    part = masks.sigmoid() * weight
    both = 2 * (part * goal).sum((1, 2))
    total = part.sum((1, 2)) + (goal * weight).sum((1, 2))
    return (1 - (both + 1) / (total + 1)).sum()


def _in_shape(planes: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Planes [n, h, w] in the size of the predicted masks, for the cost alone."""
    if tuple(planes.shape[-2:]) == tuple(shape):
        return planes
    return F.adaptive_avg_pool2d(planes[None], (shape[0], shape[1]))[0]
