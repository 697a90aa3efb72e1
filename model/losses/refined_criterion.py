"""The losses of RT-DETR, D-FINE and DEIMv2: quality-aware classes, boxes, and where a head has them
distributions of edges; for every decoder layer, for proposals, and for noisy copies of the objects.

Every term is a sum over this micro-batch divided by a count of the whole step. Layers are paired with their own
edges, and the last one has an edge loss as well, as in the authors' code
(https://github.com/Peterande/D-FINE); transformers pairs the classes of one layer with the edges of the next.
The union of the matches of all layers (D-FINE's and DEIMv2's dense one-to-one) is not formed: how many
there are depends on predictions, so no step could know its count beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data.batch import Batch
from data.objects import Objects
from model.losses.denoising import LARGEST, NoisyQueries
from model.losses.distribution import Bins, distillation, edge_loss
from model.losses.focal import focal_cost
from model.losses.matching import CostWeights, box_cost, mark, match, matched_on
from model.losses.quality import QualityLoss, pair_losses
from model.losses.terms import Counts, Losses, by_layer, fp32, object_counts

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Layer, image, query and object (numbered through the batch) of each match, int64 [K]; layer by layer, as many in
each"""


@dataclass(frozen=True)
class Predictions:
    """What some queries predict, layer by layer."""

    logits: torch.Tensor
    """[P, B, N, C]"""
    boxes: torch.Tensor
    """[P, B, N, 4] cxcywh in [0, 1]"""
    edges: torch.Tensor | None = None
    """[L, B, N, 4, bins] of the first L of the P"""
    references: torch.Tensor | None = None
    """[B, N, 4] cxcywh that the edges refer to"""


@dataclass(frozen=True)
class RefinedOutputs:
    """What a head predicts for a batch. The first L predictions are those of the decoder layers in their
    order, further ones those of `names`."""

    queries: Predictions
    names: tuple[str, ...]
    """Endings of the names of terms of further predictions of the queries"""
    noisy: Predictions | None = None
    noisy_names: tuple[str, ...] = ()
    denoising: NoisyQueries | None = None
    """What `noisy` is predicted for"""


@dataclass(frozen=True)
class RefinedWeights:
    """What the terms weigh."""

    quality: float
    l1: float
    giou: float
    fgl: float = 0.0
    ddf: float = 0.0


class RefinedCriterion:
    """Matches predictions and objects, and gives the micro-batch's share of the loss."""

    def __init__(
        self,
        quality: QualityLoss,
        quality_name: str,
        weights: RefinedWeights,
        config: Any,
        bins: Bins | None = None,
    ):
        """
        Args:
            quality_name: `loss_vfl` or `loss_mal`. config: of the detector: matcher_*, num_queries.
            bins: of heads that predict edges.
        """
        self.quality = quality
        self.quality_name = quality_name
        self.weights = {
            quality_name: weights.quality,
            "loss_bbox": weights.l1,
            "loss_giou": weights.giou,
            "loss_fgl": weights.fgl,
            "loss_ddf": weights.ddf,
        }
        self.config = config
        self.bins = bins

    def counts(self, batch: Batch) -> Counts:
        """Boxes, those of them that find a query, images, and the boxes of the most crowded image."""
        sums = object_counts("boxes", batch, self.config.num_queries).sums
        return Counts(sums, {LARGEST: max(batch.num_objects, default=0)})

    def __call__(
        self, outputs: RefinedOutputs, batch: Batch, step_counts: Mapping[str, float]
    ) -> Losses:
        """Terms of layer i < L - 1 end in `_i`, those of noisy copies in `_dn` and `_dn_i`."""
        device = outputs.queries.logits.device
        with torch.autocast(device_type=device.type, enabled=False):
            queries = _in_fp32(outputs.queries)
            pairs = self.match(queries, batch)
            boxes, matched = max(step_counts["boxes"], 1.0), step_counts["matched"]
            terms = self.terms(
                queries, batch.objects, pairs, outputs.names, boxes, matched, step_counts
            )
            if outputs.noisy is not None and outputs.denoising is not None:
                noisy = _in_fp32(outputs.noisy)
                groups = outputs.denoising.num_groups
                pairs = _of_every_layer(outputs.denoising.matched, len(noisy.logits))
                copies = boxes * groups
                found = step_counts["boxes"] * groups
                more = self.terms(
                    noisy, batch.objects, pairs, outputs.noisy_names, copies, found, step_counts
                )
                terms |= {_of_noise(name): value for name, value in more.items()}
            weighted = [self.weights[_kind(name)] * value for name, value in terms.items()]
            total = torch.stack(weighted).sum()
        return Losses(total, terms)

    @torch.no_grad()
    def match(self, found: Predictions, batch: Batch) -> Pairs:
        """The cheapest pairs of each prediction."""
        c = self.config
        cost = box_cost(
            focal_cost(found.logits, c.matcher_alpha, c.matcher_gamma),
            found.boxes,
            batch.objects,
            batch.num_objects,
            CostWeights(c.matcher_class_cost, c.matcher_bbox_cost, c.matcher_giou_cost),
        )
        queries, targets = match(cost, batch.num_objects)
        return matched_on(cost.device, queries, targets)

    def terms(
        self,
        found: Predictions,
        objects: Objects,
        pairs: Pairs,
        names: tuple[str, ...],
        per_box: float,
        matched: float,
        step_counts: Mapping[str, float],
    ) -> dict[str, torch.Tensor]:
        """Unweighted scalars by name.

        Args:
            names: of the predictions after the decoder layers. per_box: what sums over boxes are divided
                by. matched: the step's pairs in one layer.
        """
        *where, target = pairs
        place = (where[0], where[1], where[2])
        layers = len(found.logits) - len(names)
        losses = pair_losses(self.quality, found.logits, found.boxes, place, objects, target)
        iou = losses.iou
        per_layer = {
            self.quality_name: losses.classes,
            "loss_bbox": losses.l1,
            "loss_giou": losses.giou,
        }
        per_layer = {name: value / per_box for name, value in per_layer.items()}
        terms = by_layer({name: value[:layers] for name, value in per_layer.items()})
        for place_of, ending in enumerate(names, start=layers):
            terms |= {f"{name}{ending}": value[place_of] for name, value in per_layer.items()}
        if found.edges is not None and found.references is not None and self.bins is not None:
            inner = slice(len(target) // len(found.logits) * layers)  # pairs come layer by layer
            place = (place[0][inner], place[1][inner], place[2][inner])
            references = found.references.detach()[place[1:]]
            goal = objects.boxes.to(found.boxes.dtype)[target[inner]]
            fgl = edge_loss(found.edges[place], references, goal, iou[inner], self.bins)
            edges = {"loss_fgl": fgl.view(layers, -1).sum(1) / per_box}
            terms |= by_layer(edges)
            ddf = self._distillation(found, place, iou[inner], layers, matched, step_counts)
            terms |= {f"loss_ddf_{layer}": value for layer, value in enumerate(ddf)}
        return terms

    def _distillation(
        self,
        found: Predictions,
        place: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        iou: torch.Tensor,
        layers: int,
        matched: float,
        step_counts: Mapping[str, float],
    ) -> torch.Tensor:
        """Decoupled distillation of each layer but the last, [L - 1]: means over pairs and over all other
        queries, weighed by the square roots of their numbers, which are those of the step."""
        assert found.edges is not None
        students, teacher = found.edges[: layers - 1], found.edges[layers - 1]
        sure = found.logits[layers - 1].detach().sigmoid().amax(-1)
        weight = sure.expand(layers, *sure.shape).clone()
        weight[place] = iou
        paired = torch.zeros_like(weight, dtype=torch.bool)
        mark(paired, place, True)
        loss = distillation(students, teacher, weight[: layers - 1])
        paired = paired[: layers - 1]
        with_object = (loss * paired).sum((1, 2))
        without = (loss * ~paired).sum((1, 2))
        others = step_counts["images"] * found.logits.shape[2] - matched
        roots = (4 * matched) ** 0.5, (4 * others) ** 0.5
        parts = [
            total / root for total, root in zip((with_object, without), roots, strict=True) if root
        ]
        return sum(parts[1:], parts[0]) / sum(roots)


def _in_fp32(found: Predictions) -> Predictions:
    edges = None if found.edges is None else fp32(found.edges)
    references = None if found.references is None else fp32(found.references)
    return Predictions(fp32(found.logits), fp32(found.boxes), edges, references)


def _of_every_layer(matched: tuple[torch.Tensor, torch.Tensor, torch.Tensor], layers: int) -> Pairs:
    """The same pairs in each layer."""
    image, query, target = (index.repeat(layers) for index in matched)
    layer = torch.arange(layers, device=image.device).repeat_interleave(len(matched[0]))
    return layer, image, query, target


def _of_noise(name: str) -> str:
    """`loss_x_0` becomes `loss_x_dn_0`."""
    kind = _kind(name)
    return f"{kind}_dn{name.removeprefix(kind)}"


def _kind(name: str) -> str:
    """`loss_x` of a term's name."""
    return "_".join(name.split("_")[:2])
