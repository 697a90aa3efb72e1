"""What a model's outputs say is on the images: boxes or masks, with classes and scores."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data.boxes import from_corners
from data.masks import Rle, encode, encode_all, mask_column
from data.objects import Objects

MASKS_AT_ONCE = 16
"""Masks that are made as large as the image at the same time"""


def find_boxes(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """Boxes xywh in px of the decoded images, image by image, by falling score.

    Args:
        sizes: int64 [B, 2] (height, width) of the decoded images. most: highest-scored of each image.
        threshold: only scores above it.
    """
    found = processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=sizes
    )
    rows = []
    for row, result in enumerate(found):
        top = result["scores"].argsort(descending=True, stable=True)[:most]
        columns = [
            torch.full_like(result["scores"], row)[top, None],
            result["boxes"][top],
            result["scores"][top, None],
            result["labels"][top, None].to(result["scores"]),
        ]
        rows.append(torch.cat(columns, dim=1))
    table = torch.cat(rows).cpu().numpy().astype(np.float64)  # one copy to the host
    return Objects(
        image=table[:, 0].astype(np.int64),
        boxes=from_corners(table[:, 1:5]),
        scores=table[:, 5],
        classes=table[:, 6].astype(np.int64),
    )


def find_masks(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """Whole masks on the decoded images, with boxes around them; arguments as of `find_boxes`.

    The score of a query's mask for a class is the class's probability times the mean probability of
    the mask's pixels, as MaskFormer's authors have it; a mask is what has a probability above one half
    after it was made as large as the image.
    """
    tables = []
    for image, (height, width) in enumerate(sizes.tolist()):
        masks = outputs.masks_queries_logits[image].float()
        inside = (masks > 0).flatten(1).float()
        quality = (masks.sigmoid().flatten(1) * inside).sum(1) / inside.sum(1).clamp(min=1)
        classes = outputs.class_queries_logits[image].float().softmax(-1)[:, :-1]
        scores, order = (classes * quality[:, None]).flatten().sort(descending=True, stable=True)
        order = order[(scores > threshold) & (scores > 0)][:most]
        queries, kinds = order // classes.shape[1], order % classes.shape[1]
        wanted, place = queries.unique(return_inverse=True)
        whole = _rles(masks[wanted], (height, width))
        table = Objects(
            image=np.full(len(order), image),
            boxes=np.zeros((len(order), 4)),
            scores=scores[: len(order)].cpu().numpy().astype(np.float64),
            classes=kinds.cpu().numpy(),
            masks=mask_column([whole[i][0] for i in place.tolist()]),
        )
        boxes = np.array([whole[i][1] for i in place.tolist()]).reshape(-1, 4)
        filled = (boxes[:, 2:] > 0).all(axis=1)
        tables.append(Objects(**{**table.columns(), "boxes": boxes}).take(filled))
    return Objects.concat(tables)


def find_flat_masks(outputs: Any, processor: Any, sizes: torch.Tensor, threshold: float) -> Objects:
    """What `pipeline("image-segmentation")(image, subtask="instance")` gives: one map of the image, where
    later masks cover earlier ones; arguments as of `find_boxes`.

    The pipeline's own default, panoptic, gives every pixel of the background to some object as well.
    """
    on_host = SimpleNamespace(  # its maps are made there, wherever the outputs are
        class_queries_logits=outputs.class_queries_logits.cpu(),
        masks_queries_logits=outputs.masks_queries_logits.cpu(),
    )
    found = processor.post_process_instance_segmentation(
        on_host,
        threshold=threshold,
        target_sizes=[tuple(size) for size in sizes.tolist()],
    )
    tables = []
    for image, result in enumerate(found):
        plane = result["segmentation"].cpu().numpy().astype(np.int64)
        shown = set(np.unique(plane).tolist())
        segments = [segment for segment in result["segments_info"] if segment["id"] in shown]
        masks = [plane == segment["id"] for segment in segments]
        tables.append(
            Objects(
                image=np.full(len(segments), image),
                boxes=np.array([_box(mask) for mask in masks]).reshape(-1, 4),
                scores=np.array([segment["score"] for segment in segments], np.float64),
                classes=np.array([segment["label_id"] for segment in segments], np.int64),
                masks=mask_column([encode(mask) for mask in masks]),
            )
        )
    return Objects.concat(tables)


def _box(plane: np.ndarray) -> list[float]:
    """xywh around what is set of [H, W], px; all 0 if nothing is."""
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    right, bottom = columns[-1] + 1, rows[-1] + 1
    box = (columns[0], rows[0], right - columns[0], bottom - rows[0])
    return [float(side) for side in box]


def _rles(masks: torch.Tensor, size: Sequence[int]) -> list[tuple[Rle, list[float]]]:
    """Run lengths and xywh boxes of mask logits [k, h, w] made as large as `size` (height, width)."""
    found = []
    for part in masks.split(MASKS_AT_ONCE) if len(masks) else ():
        large = F.interpolate(part[None], size=tuple(size), mode="bilinear")[0] > 0
        planes = large.cpu().numpy().view(np.uint8)
        for rle, plane in zip(encode_all(planes), planes, strict=True):
            found.append((rle, _box(plane)))
    return found
