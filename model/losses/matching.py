"""Hungarian matching of queries and objects (DETR, https://arxiv.org/abs/2005.12872)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from data.objects import Objects
from devices import sent
from model.losses.boxes import box_giou


@dataclass(frozen=True)
class CostWeights:
    """What the three parts of the cost of a match weigh."""

    of_class: float
    of_l1: float
    of_giou: float


@torch.no_grad()
def box_cost(
    class_costs: torch.Tensor,
    boxes: torch.Tensor,
    objects: Objects,
    num_objects: Sequence[int],
    weights: CostWeights,
) -> torch.Tensor:
    """Cost [L, B, Q, T] of giving a query an object; T is the most objects of an image.

    Columns beyond an image's own objects mean nothing.

    Args:
        class_costs: [L, B, Q, C] of calling a query each class. boxes: [L, B, Q, 4] cxcywh.
        objects: of all images, image by image. num_objects: of each image.
    """
    classes = per_image(objects.classes, num_objects, 0)
    goals = per_image(objects.boxes.to(boxes.dtype), num_objects, 0.5)
    where = classes[None, :, None, :].expand(*class_costs.shape[:3], classes.shape[1])
    distance = torch.cdist(boxes, goals[None].expand(len(boxes), -1, -1, -1), p=1)
    giou = box_giou(boxes[..., :, None, :], goals[None, :, None])
    scores = class_costs.gather(-1, where)
    return weights.of_class * scores + weights.of_l1 * distance - weights.of_giou * giou


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


def matched_on(
    device: torch.device, queries: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer, image, query and target of what `match` gave, on a device: one copy, which nobody waits for."""
    layer, image, query, target = sent(torch.cat([queries, targets[None]]), device)
    return layer, image, query, target


def mark(values: torch.Tensor, place: tuple[torch.Tensor, ...], number: float) -> None:
    """In place: `values[place] = number`, for which CUDA would be waited for: the number would be copied to it."""
    values.index_put_(place, values.new_full((), number))


def per_image(column: torch.Tensor, num_targets: Sequence[int], fill: float) -> torch.Tensor:
    """[B, T, ...] of a column [n, ...] of a batch's objects; T is the most of an image.

    Places beyond an image's own objects hold `fill`.
    """
    padded = column.new_full((len(num_targets), max(num_targets), *column.shape[1:]), fill)
    for row, own in enumerate(column.split(list(num_targets))):
        padded[row, : len(own)] = own
    return padded
