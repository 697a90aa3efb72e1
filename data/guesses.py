"""Mistakes that show in many annotations at once: what was probably meant, and the key that says so."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.boxes import RELATIVE, VOC, read_as, written_as
from data.findings import GUESSED_KINDS, Findings
from data.schema import Split
from data.table import RecordTable

PIXELS = ("xywh", "xyxy", "cxcywh")
RELATIVES = ("cxcywh_relative", "xyxy_relative", "xywh_relative")
"""The commonest first: of formats that fit alike it is taken"""
MEANING = {
    "xywh": "corner and size, px",
    "xyxy": "two corners, px",
    "cxcywh": "centre and size, px",
    "xywh_relative": "corner and size, 0 to 1",
    "xyxy_relative": "two corners, 0 to 1",
    "cxcywh_relative": "centre and size, 0 to 1",
    VOC: "VOC's corners, px",
}
FEWEST = 4
"""Boxes that do not fit, of which something is guessed"""
MANY = 0.03
"""Part of the boxes that does not fit, from which on it is no carelessness"""
LARGEST_PART = 1.5
"""Above it no number is a part of an image's side"""
AT_EDGE = 0.005
"""Part of the boxes that begins one pixel before its image, from which on the files count from 0"""
ROUNDING_PX, ROUNDING = 1.0, 0.005
"""By which boxes may stick out of images in any case: px, and part of a side"""


@dataclass(frozen=True)
class BoxGuess:
    """Another format in which the boxes fit their images."""

    box_format: str
    read_as: str
    num: int
    outside: int
    """Boxes that do not fit as they are read"""
    left: int
    """Boxes that do not fit in the other format"""
    alike: tuple[str, ...] = ()
    """Formats in which they fit as well"""

    def __str__(self) -> str:
        parts = self.read_as.endswith(RELATIVE) != self.box_format.endswith(RELATIVE)
        wrong = (
            f"the numbers of {self.num - self.outside:,} of {self.num:,} boxes are "
            f"{'0 to 1' if self.box_format.endswith(RELATIVE) else 'no parts of an image'}"
            if parts
            else f"{self.outside:,} of {self.num:,} boxes do not lie in their images"
        )
        others = f" (or {', '.join(self.alike)}: look at the boxes)" if self.alike else ""
        own = f"; if they are right, say data.box_format {self.read_as}"
        return (
            f"read as {self.read_as} ({MEANING[self.read_as]}), {wrong}; as {self.box_format} "
            f"({MEANING[self.box_format]}) {self.left:,} do not fit: set data.box_format {self.box_format}{others}{own}"
        )


def guess_box_format(splits: Sequence[Split], own: str) -> BoxGuess | None:
    """The format that boxes probably have; None if they fit as they are read, or nothing fits better.

    Args:
        splits: as their readers gave them. own: the format that they were read by.
    """
    boxes, sizes = _boxes_and_sizes(splits)
    if len(boxes) < FEWEST:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        raw = written_as(boxes, own, sizes)
        small = (np.abs(raw) <= LARGEST_PART).all(axis=1) & (sizes > 8 * LARGEST_PART).all(axis=1)
        share = float(small.mean())
        was_relative = own.endswith(RELATIVE)
        is_relative = share >= (0.5 if was_relative else 0.98)
        formats = (
            RELATIVES
            if is_relative
            else tuple(VOC if own == VOC and f == "xyxy" else f for f in PIXELS)
        )
        misfits = {form: int(_misfit(read_as(raw, form, sizes), sizes).sum()) for form in formats}
    best = min(misfits, key=lambda form: misfits[form])
    least, num = misfits[best], len(boxes)
    if was_relative != is_relative:
        if least > 0.2 * num:
            return None
        outside = int((~small).sum()) if is_relative else int(small.sum())
        alike = (
            tuple(f for f, n in misfits.items() if n == least and f != best) if is_relative else ()
        )
        return BoxGuess(best, own, num, outside, least, alike)
    outside = misfits[own]
    if outside < max(FEWEST, MANY * num) or least > max(0.005 * num, outside / 10):
        return None
    return BoxGuess(best, own, num, outside, least)


def _boxes_and_sizes(splits: Sequence[Split]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, xywh px, float64 [n, 4], and (width, height) of their images, [n, 2]; of images of known size."""
    found = []
    for split in splits:
        objects = split.objects
        records = split.records
        known = np.array([(r.width, r.height) != (1, 1) for r in records], bool)
        sizes = np.array([(r.width, r.height) for r in records], np.float64).reshape(-1, 2)
        usable = known[objects.image] & np.isfinite(objects.boxes).all(axis=1)
        found.append((objects.boxes[usable], sizes[objects.image[usable]]))
    boxes, of_images = zip(*found, strict=True)
    return np.concatenate(boxes).reshape(-1, 4), np.concatenate(of_images).reshape(-1, 2)


def _misfit(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """bool [n]: boxes, xywh px, that are none or stick out of their images."""
    room = np.maximum(ROUNDING_PX, ROUNDING * sizes)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    wrong = (boxes[:, 2:] <= 0).any(axis=1) | (low < -room).any(axis=1)
    return wrong | (high > sizes + room).any(axis=1)


@dataclass(frozen=True)
class ZeroGuess:
    """Corners of VOC files that count from 0."""

    before: int
    """Boxes that begin one pixel before their image"""
    at: int
    """Boxes that begin where their image does"""
    num: int

    def __str__(self) -> str:
        return (
            f"read as {VOC} ({MEANING[VOC]}, which count from 1), {self.before:,} of {self.num:,} boxes begin at -1 and "
            f"{self.at:,} at 0: the files count from 0, and all boxes come out one pixel too far left and up: "
            f"set data.box_format xyxy; if they are right, say data.box_format {VOC}"
        )


def guess_zero(splits: Sequence[Split], own: str) -> ZeroGuess | None:
    """Whether VOC's corners count from 0: at the left and upper edge boxes begin at -1, where others begin at 0."""
    if own != VOC:
        return None
    boxes, sizes = _boxes_and_sizes(splits)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    before, at = (int((low == edge).any(axis=1).sum()) for edge in (-1, 0))
    beyond = int(((low < -1).any(axis=1) | (high > sizes).any(axis=1)).sum())
    if before < max(FEWEST, AT_EDGE * len(boxes)) or before < 2 * at or beyond > before / 10:
        return None
    return ZeroGuess(before, at, len(boxes))


@dataclass(frozen=True)
class OffsetGuess:
    """Category ids that all belong to the next class."""

    offset: int
    unknown: int
    first: int
    first_named: int

    def __str__(self) -> str:
        return (
            f"the ids of annotations begin at {self.first}, those of the names at {self.first_named}, and "
            f"{self.unknown:,} annotations have none of these: set data.category_offset {self.offset}"
        )


def guess_category_offset(splits: Sequence[Split]) -> OffsetGuess | None:
    """What has to be added to category ids so that all have a name; None if nothing has, or does not help."""
    named = {category for split in splits for category in split.category_names}
    used, counts = np.unique(
        np.concatenate([s.objects.classes for s in splits]), return_counts=True
    )
    known = np.isin(used, list(named))
    if not named or known.all():
        return None
    for offset in (1, -1):
        if {int(category) + offset for category in used} <= named:
            return OffsetGuess(offset, int(counts[~known].sum()), int(used.min()), min(named))
    return None


def with_offset(split: Split, offset: int) -> Split:
    """With an offset added to the category ids of all objects."""
    objects = split.objects
    moved = replace(objects, classes=objects.classes + offset)
    return replace(split, records=RecordTable.of(split.records, moved))


def note_guesses(
    splits: Sequence[Split], where: str, own: str | None, findings: Findings
) -> set[str]:
    """Findings for what was guessed; the kinds of findings that they explain.

    Args:
        own: the format that boxes were read by; None: no guess, since somebody has said it, or masks count.
    """
    explained: set[str] = set()
    boxes: BoxGuess | ZeroGuess | None = None
    if own is not None:
        boxes = guess_box_format(splits, own) or guess_zero(splits, own)
    if boxes is not None:
        findings.add("boxes of another format", where, str(boxes))
        explained |= {
            *("box partly outside", "box outside the image", "box with a negative side"),
            *("box inverted", "box without area"),
        }
    if (ids := guess_category_offset(splits)) is not None:
        findings.add("ids of classes off by one", where, str(ids))
        explained.add("unknown category")
    return explained


SET = re.compile(
    r"set data\.(?:(box_format|category_offset) (\S+?)(?=[;,\s]|$)|(train_images|val_images) (.+)\Z)",
    re.DOTALL,  # a folder's name may have anything
)


def mending_keys(findings: Findings) -> dict[str, Any]:
    """Values by key that guesses among the findings ask for, but for those that have a risk."""
    texts = [f.detail for f in findings if f.kind in GUESSED_KINDS]
    found = {f"data.{m[1] or m[3]}": m[2] or m[4] for text in texts for m in SET.finditer(text)}
    return {k: int(v) if k == "data.category_offset" else v for k, v in found.items()}
