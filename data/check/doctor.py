"""The check of a whole dataset: every image is decoded once, and compared with all others.

What the annotation files and the headers show is in `Data.findings` already; here is what only the
pixels show.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data.check.isolated import Lost, isolated
from data.dataset import Data
from data.findings import Findings
from data.images.decode import decode
from data.record import Record
from data.schema import Split
from errors import UserError

LONGEST_S = 60.0
"""An image that takes longer to decode is given up, s"""
TRUNCATED = ("truncated", "premature end", "unexpected end", "failed to read next frame")
"""Words of a decoder that ran out of data"""


@dataclass(frozen=True)
class Look:
    """What one image's pixels show."""

    size: tuple[int, int] = (0, 0)
    """(width, height) of the decoded image, px"""
    digest: bytes = b""
    """SHA-256 of size and pixels; empty if there are none"""
    defect: tuple[str, str] | None = None
    """Kind and detail of what keeps the image from being decoded"""
    lasting: bool = True
    """Whether another look would show the same: not where the machine was at fault, or may have been"""


def check_images(
    data: Data, workers: int, progress: Callable[[], object] = lambda: None
) -> Findings:
    """Decode every image that has a header, of both splits, in worker processes.

    Args:
        workers: number of processes. progress: called after each image.

    Returns:
        What the readers could not see: images that cannot be decoded or have another size than
        their header says, exact duplicates, and training images in the validation split.
    """
    splits = splits_of(data)
    places = readable_places(splits)
    looks: dict[tuple[str, int], Look] = {}
    for item, result in isolated(
        partial(_look_at_place, splits, places), len(places), workers, lambda _: LONGEST_S
    ):
        looks[places[item]] = of_worker(result)
        progress()
    return findings_of(splits, {place: looks[place] for place in places})


def of_worker(result: Look | Lost) -> Look:
    """What a worker has seen, or that it has not come back."""
    if isinstance(result, Lost):
        return Look(defect=("unreadable image", result.reason), lasting=False)
    return result


def findings_of(splits: dict[str, Split], looks: dict[tuple[str, int], Look]) -> Findings:
    """Join what was seen of all images, in the order of `readable_places`."""
    findings = Findings()
    for place, seen in looks.items():
        _add_defects(findings, splits, place, seen)
    _add_duplicates(findings, splits, {place: seen.digest for place, seen in looks.items()})
    return findings


def splits_of(data: Data) -> dict[str, Split]:
    """The splits by name; validation on the training images is no second split."""
    if data.val.images is data.train.images:
        return {"train": data.train}
    return {"train": data.train, "val": data.val}


def readable_places(splits: dict[str, Split]) -> list[tuple[str, int]]:
    """(split, place) of the images whose headers can be read; the others are findings already."""
    return [
        (name, index)
        for name, split in splits.items()
        for index, record in enumerate(split.records)
        if not record.unreadable
    ]


def look(split: Split, index: int) -> Look:
    """Decode image `index`. Whatever a decoder raises is a defect of the image."""
    try:
        pixels = decode(split.images[index], "")
    except UserError as error:
        detail = str(error).removeprefix(": cannot decode the image: ")
        short = any(word in detail.lower() for word in TRUNCATED)
        # Decoders raise errors of the system as well, but without its number.
        of_system = getattr(error.__cause__, "errno", None) is not None
        kind = "truncated image" if short else "unreadable image"
        return Look(defect=(kind, detail), lasting=not of_system)
    except Exception as error:  # an image that could be found before, and no longer
        defect = "unreadable image", f"{type(error).__name__}: {error}"
        return Look(defect=defect, lasting=False)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Look((width, height), digest.digest())


def _look_at_place(splits: dict[str, Split], places: list[tuple[str, int]], item: int) -> Look:
    name, index = places[item]
    return look(splits[name], index)


def _add_defects(
    findings: Findings, splits: dict[str, Split], place: tuple[str, int], seen: Look
) -> None:
    record = splits[place[0]].records[place[1]]
    if seen.defect is not None:
        kind, detail = seen.defect
        findings.add(kind, record.where, detail, place)
    elif seen.size != (record.width, record.height):
        detail = (
            f"{seen.size[0]} x {seen.size[1]} px, its header says {record.width} x {record.height}"
        )
        findings.add("size differs from header", record.where, detail, place)


def _labels(record: Record) -> tuple[Any, ...]:
    """What tells the annotations of an image from those of another one."""
    objects = record.objects
    masks = [mask.key() for mask in ([] if objects.masks is None else objects.masks)]
    return objects.boxes.tolist(), objects.classes.tolist(), masks


def _add_duplicates(
    findings: Findings, splits: dict[str, Split], digests: dict[tuple[str, int], bytes]
) -> None:
    first: dict[tuple[str, bytes], int] = {}
    for (name, index), digest in digests.items():
        if not digest:
            continue
        record = splits[name].records[index]
        twin = first.setdefault((name, digest), index)
        pairs = [("duplicate image", name, twin)] if twin != index else []
        if name == "val" and ("train", digest) in first:
            pairs.append(("training image in validation", "train", first["train", digest]))
        for kind, split, other in pairs:
            known = splits[split].records[other]
            equal = _labels(known) == _labels(record)
            detail = f"same pixels as {known.where}{'' if equal else ', with other annotations'}"
            findings.add(kind, record.where, detail, (name, index))
