"""What a model's outputs say is on the images: boxes or masks, with classes and scores."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data.boxes import from_corners
from data.masks import Rle, bounds, encode, encode_all, mask_column, merged
from data.objects import Objects
from data.regions import regions_of
from settings.tasks import Task

MASKS_AT_ONCE = 16
"""Masks that are made as large as the image at the same time"""
PIPELINE_OVERLAP = 0.5
"""Least part of a mask that others have to leave of it in the pipeline of transformers"""
MASK2FORMER_PX = 384
"""Side that the image processor of Mask2Former makes all masks before it does anything with them"""


@dataclass(frozen=True)
class Finder:
    """How the outputs of a model are read for a task."""

    find: Callable[[Any, Any, torch.Tensor, int | None, float], Objects]
    """(outputs, processor, sizes, most of an image, threshold) -> what is on the images"""
    find_flat: Callable[[Any, Any, torch.Tensor, float], Objects] | None = None
    """(outputs, processor, sizes, threshold) -> what a pipeline of transformers gives, if that is less than
    `find` does"""
    thresholded: bool = False
    """What is found depends on the threshold, and cannot be chosen from all by score"""


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
        scores = classes * quality[:, None]
        tables.append(_of_scores(image, scores, masks, (height, width), most, max(threshold, 0.0)))
    return Objects.concat(tables)


def find_sigmoid_masks(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """Whole masks as RF-DETR's image processor has them (`return_binary_maps`), with boxes around them;
    arguments as of `find_boxes`.

    The score of a query's mask for a class is the class's probability alone, and of all of an image as many
    are looked at as there are queries.
    """
    tables = []
    for image, size in enumerate(sizes.tolist()):
        scores = outputs.logits[image].float().sigmoid()
        num = len(scores) if most is None else min(most, len(scores))
        masks = outputs.pred_masks[image].float()
        tables.append(_of_scores(image, scores, masks, size, num, threshold))
    return Objects.concat(tables)


def _of_scores(
    image: int,
    scores: torch.Tensor,
    masks: torch.Tensor,
    size: Sequence[int],
    most: int | None,
    threshold: float,
) -> Objects:
    """The masks of an image that are not empty, by falling score.

    Args:
        scores: [Q, C] of calling a query's mask each class. masks: logits [Q, h, w].
        size: (height, width) of the decoded image.
    """
    falling, order = scores.flatten().sort(descending=True, stable=True)
    order = order[falling > threshold][:most]
    queries, kinds = order // scores.shape[1], order % scores.shape[1]
    wanted, place = queries.unique(return_inverse=True)
    whole = _rles(masks[wanted], size)
    table = Objects(
        image=np.full(len(order), image),
        boxes=np.zeros((len(order), 4)),
        scores=falling[: len(order)].cpu().numpy().astype(np.float64),
        classes=kinds.cpu().numpy(),
        masks=mask_column([whole[i][0] for i in place.tolist()]),
    )
    boxes = np.array([whole[i][1] for i in place.tolist()]).reshape(-1, 4)
    filled = (boxes[:, 2:] > 0).all(axis=1)
    return Objects(**{**table.columns(), "boxes": boxes}).take(filled)


def find_flat_masks(outputs: Any, processor: Any, sizes: torch.Tensor, threshold: float) -> Objects:
    """What `pipeline("image-segmentation")(image, subtask="instance")` gives: one map of the image, where
    later masks cover earlier ones; arguments as of `find_boxes`.

    The pipeline's own default, panoptic, gives every pixel of the background to some object as well.
    """
    found = processor.post_process_instance_segmentation(
        _on_host(outputs),
        threshold=threshold,
        target_sizes=[tuple(size) for size in sizes.tolist()],
    )
    return _of_flat_maps(found)


def find_segments(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """What `pipeline("image-segmentation")(image, subtask="panoptic")` gives: segments of things and parts of
    those of stuff, of which no two overlap; arguments as of `find_boxes`."""
    found = processor.post_process_panoptic_segmentation(
        _on_host(outputs),
        threshold=threshold,
        overlap_mask_area_threshold=PIPELINE_OVERLAP,
        label_ids_to_fuse=set(),
        target_sizes=[tuple(size) for size in sizes.tolist()],
    )
    return _of_flat_maps(found)


def fused(found: Objects, stuff: Collection[int]) -> Objects:
    """With one object for all of a class of stuff on an image, of the highest score."""
    keys = [
        (int(image), int(kind)) if kind in stuff else (int(image), -1 - place)
        for place, (image, kind) in enumerate(zip(found.image, found.classes, strict=True))
    ]
    groups: dict[tuple[int, int], list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    first = found.take(np.array([places[0] for places in groups.values()], dtype=np.int64))
    masks = [merged([found.masks[place] for place in places]) for places in groups.values()]
    scores = [max(found.scores[place] for place in places) for places in groups.values()]
    sizes = np.array([mask.size[::-1] * 2 for mask in masks]).reshape(-1, 4)
    parts = np.array([bounds(mask) for mask in masks]).reshape(-1, 4)
    return replace(
        first,
        masks=mask_column(masks),
        scores=np.array(scores),
        boxes=from_corners(parts * sizes),
    )


def _on_host(outputs: Any) -> SimpleNamespace:
    """What transformers' post-processing takes; its maps are made there, wherever the outputs are."""
    return SimpleNamespace(
        class_queries_logits=outputs.class_queries_logits.cpu(),
        masks_queries_logits=outputs.masks_queries_logits.cpu(),
    )


def _of_flat_maps(found: Sequence[Mapping[str, Any]]) -> Objects:
    """The segments of each image's map."""
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


def find_regions(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """The class of every pixel, as `pipeline("image-segmentation")(image, subtask="semantic")` has it: a
    region for each class; arguments as of `find_boxes`, of which those about scores have no effect."""
    return _regions(_scores_of_queries(outputs, None), sizes)


def find_regions_of_384(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """As `find_regions`, from masks that were first made as large as Mask2Former's processor does."""
    return _regions(_scores_of_queries(outputs, MASK2FORMER_PX), sizes)


def find_pixel_classes(
    outputs: Any, processor: Any, sizes: torch.Tensor, most: int | None, threshold: float
) -> Objects:
    """As `find_regions`, from `logits` [B, C, h, w] of the classes."""
    return _regions(iter(outputs.logits.float()), sizes)


def _scores_of_queries(outputs: Any, side_px: int | None) -> Iterator[torch.Tensor]:
    """Scores [C, h, w] of every class and pixel, image by image."""
    for logits, masks in zip(
        outputs.class_queries_logits, outputs.masks_queries_logits, strict=True
    ):
        classes, masks = logits.float().softmax(-1)[:, :-1], masks.float()
        if side_px is not None:
            masks = F.interpolate(masks[None], size=(side_px, side_px), mode="bilinear")[0]
        yield torch.einsum("qc,qhw->chw", classes, masks.sigmoid())


def _regions(scores: Iterable[torch.Tensor], sizes: torch.Tensor) -> Objects:
    """A region for the pixels of every image for which a class has the highest score.

    Args:
        scores: [C, h, w] of every image, made as large as the decoded image. sizes: as of `find_boxes`.
    """
    tables = []
    for image, (own, size) in enumerate(zip(scores, sizes.tolist(), strict=True)):
        regions = regions_of(_best_class(own, size).cpu().numpy() + 1)
        num = len(regions)
        tables.append(replace(regions, image=np.full(num, image), scores=np.ones(num)))
    return Objects.concat(tables)


def _best_class(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Class, int64 [H, W], with the highest of the scores [C, h, w] made as large as `size`; of equal ones
    the first. Some classes at a time: memory follows pixels, not pixels times classes."""
    best = torch.full(tuple(size), -torch.inf, device=scores.device)
    found = torch.zeros(tuple(size), dtype=torch.int64, device=scores.device)
    for start in range(0, len(scores), MASKS_AT_ONCE):
        part = scores[start : start + MASKS_AT_ONCE]
        large = F.interpolate(part[None], size=tuple(size), mode="bilinear")[0]
        highest, place = large.max(dim=0)
        higher = highest > best
        best = torch.where(higher, highest, best)
        found = torch.where(higher, place + start, found)
    return found


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


BOXES = Finder(find_boxes)
MASKS = Finder(find_masks, find_flat_masks)
SIGMOID_MASKS = Finder(find_sigmoid_masks)
SEGMENTS = Finder(find_segments, thresholded=True)


def mask_tasks(regions: Callable[..., Objects] = find_regions) -> dict[Task, Finder]:
    """How heads with queries and masks are read, for every task.

    Args:
        regions: for semantic segmentation.
    """
    return {
        "instance_segmentation": MASKS,
        "semantic_segmentation": Finder(regions),
        "panoptic_segmentation": SEGMENTS,
    }
