"""Contrastive denoising: noisy copies of the objects as further queries, which have to find them again.

Sources: DINO (https://arxiv.org/abs/2203.03605), RT-DETR (https://arxiv.org/abs/2304.08069). The noise of
an image is drawn from its own key, and how many copies there are follows from the step's most crowded
image. So neither processes nor micro-batches change what a step is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.batch import Batch
from devices import sent
from model.losses.boxes import centred, corners
from model.losses.matching import per_image

LARGEST = "most_boxes"
"""The step's count of the boxes in its most crowded image"""


@dataclass(frozen=True)
class NoisyQueries:
    """D = 2 G T queries of each image of a micro-batch, in G groups that do not see each other: T with little
    noise, each of which has to find its object, and T with more, which have to find nothing.

    T is the number of boxes in the step's most crowded image; places without an object are empty.
    """

    classes: torch.Tensor
    """int64 [B, D]; C (no class) in empty places"""
    boxes: torch.Tensor
    """[B, D, 4] cxcywh in [0, 1]; zeros in empty places"""
    matched: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Image, query and object (numbered through the batch) of all pairs, int64 [K] each"""
    num_groups: int

    @property
    def num(self) -> int:
        """D."""
        return self.boxes.shape[1]

    def hidden(self, num_queries: int, dtype: torch.dtype) -> torch.Tensor:
        """[D + Q, D + Q], to be added to attention: -inf where the query of a row must not see that of a
        column, since it would show where the objects are."""
        group = torch.arange(self.num, device=self.boxes.device) // (self.num // self.num_groups)
        group = torch.cat([group, group.new_full((num_queries,), -1)])
        noisy = group >= 0
        forbidden = noisy[None, :] & (group[:, None] != group[None, :])
        mask = torch.zeros(forbidden.shape, dtype=dtype, device=group.device)
        return mask.masked_fill_(forbidden, -torch.inf)


def noisy_queries(
    batch: Batch, step_counts: Mapping[str, float], num_classes: int, config: Any
) -> NoisyQueries:
    """Queries for a micro-batch.

    Args:
        step_counts: with LARGEST. config: num_denoising, label_noise_ratio, box_noise_scale.
    """
    numbers, device = batch.num_objects, batch.pixel_mask.device
    most = max(1, int(step_counts[LARGEST]))  # never no query: each rank needs the same gradients
    groups = max(1, config.num_denoising // most)
    random = torch.zeros(len(numbers), groups, 2, most, 10)
    for row, num in enumerate(numbers):
        generator = torch.Generator().manual_seed(batch.noise_keys[row])
        random[row, :, :, :num] = torch.rand(groups, 2, num, 10, generator=generator)
    random = sent(random, device)
    there = sent(torch.arange(most) < torch.tensor(numbers)[:, None], device)
    classes = _padded(batch.objects.classes, numbers, most, num_classes)[:, None, None]
    swapped = (random[..., 0] < config.label_noise_ratio / 2) & there[:, None, None]
    other = (random[..., 1] * num_classes).long().clamp(max=num_classes - 1)
    classes = torch.where(swapped, other, classes)
    boxes = _padded(batch.objects.boxes, numbers, most, 0.0)[:, None, None]
    reach = torch.cat([boxes[..., 2:]] * 2, dim=-1) * config.box_noise_scale / 2
    far = torch.arange(2.0, device=device).view(1, 1, 2, 1, 1)
    shift = (random[..., 6:] + far) * torch.where(random[..., 2:6] < 0.5, -1.0, 1.0)
    moved = centred((corners(boxes) + shift * reach).clamp(0, 1))
    return NoisyQueries(
        classes.flatten(1),
        moved.flatten(1, 3),
        _pairs(numbers, groups, most, device),
        groups,
    )


def _padded(column: torch.Tensor, numbers: Sequence[int], most: int, fill: float) -> torch.Tensor:
    """[B, T, ...] for the step's T, which may be larger than that of this micro-batch."""
    own = per_image(column, numbers, fill)
    shape = (own.shape[0], most - own.shape[1], *own.shape[2:])
    return torch.cat([own, own.new_full(shape, fill)], dim=1)


def _pairs(
    numbers: Sequence[int], groups: int, most: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, query and object of the queries with little noise."""
    images, queries, objects = [], [], []
    first = 0
    for row, num in enumerate(numbers):
        place = torch.arange(groups)[:, None] * 2 * most + torch.arange(num)
        images.append(torch.full((groups * num,), row))
        queries.append(place.flatten())
        objects.append((first + torch.arange(num)).repeat(groups))
        first += num
    table = sent(torch.stack([torch.cat(column) for column in (images, queries, objects)]), device)
    return table[0], table[1], table[2]
