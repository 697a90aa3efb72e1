"""The check of images range by range.

What the pixels and masks of some images show depends on nothing else. So ranges can be looked at anywhere and in any
order, and what was found be kept: a file a range, which says what it was made from. `ImageCheck.findings` joins them.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data.check.doctor import (
    LONGEST_S,
    Look,
    findings_of,
    look,
    of_worker,
    readable_places,
    splits_of,
)
from data.check.isolated import Lost, isolated
from data.check.masks import Defect, mask_defects
from data.dataset import Data
from data.findings import Finding, Findings
from data.images.headers import readable_formats
from data.record import Record
from data.schema import Split, Subset
from data.sources.files import ImageFiles
from disk import ROOT, write_whole
from errors import UserError

FORMAT = 1
"""Raise it when files made before would be wrong"""
RANGE_IMAGES = 1024
"""Images of a range"""
DAY_S = 86400.0
MADE_BY = ("pillow", "numpy", "scipy", "faster-coco-eval")
"""Packages that decide what is found"""
MADE_FROM = (
    *("data/check/doctor.py", "data/check/isolated.py", "data/check/masks.py"),
    *("data/check/ranges.py", "data/images/decode.py", "data/images/headers.py", "data/masks.py"),
)
"""Code of ours that does"""


@dataclass(frozen=True)
class Range:
    """Some images of a split."""

    number: int
    """Among those of both splits"""
    split: str
    places: tuple[int, ...]

    def __str__(self) -> str:
        return f"range {self.number} (of {self.split})"


@dataclass(frozen=True)
class Facts:
    """What one image shows."""

    look: Look
    masks: tuple[Defect, ...] = ()


class ImageCheck:
    """The check of all images of a dataset."""

    def __init__(self, data: Data, size: int = RANGE_IMAGES, folder: Path | None = None):
        """
        Args:
            size: images of a range. folder: where facts are kept; None: nowhere.
        """
        self.splits = splits_of(data)
        self.ranges = _ranges(self.splits, size)
        self.folder = folder
        self.facts: dict[int, list[Facts]] = {}
        self._origins: dict[int, dict[str, Any]] = {}

    @property
    def num_images(self) -> int:
        """Whose headers can be read; the others are findings already."""
        return sum(len(part.places) for part in self.ranges)

    def missing(self, share: tuple[int, int] = (1, 1)) -> list[Range]:
        """Ranges of a share (the K-th of N) that have to be looked at; facts of the others are read.

        Call it before any of them is looked at.
        """
        number, jobs = share
        own = [part for part in self.ranges if part.number % jobs == number - 1]
        if self.folder is not None:
            for part in own:
                self._origins[part.number] = origin = origin_of(self.splits[part.split], part)
                facts = _read(_file(self.folder, part, origin), origin)
                if facts is not None:
                    self.facts[part.number] = facts
        return [part for part in own if part.number not in self.facts]

    def add(self, part: Range, facts: list[Facts]) -> bool:
        """Take what a range shows; whether it is kept. It is not where another look may show something else.

        Raises:
            UserError: if the folder cannot be written.
        """
        self.facts[part.number] = facts
        if self.folder is None or not all(fact.look.lasting for fact in facts):
            return False
        origin = self._origins[part.number]
        if origin_of(self.splits[part.split], part) != origin:  # an image has changed meanwhile
            return False
        content = {"made_from": origin, "images": [_to_json(fact) for fact in facts]}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(_file(self.folder, part, origin), json.dumps(content) + "\n")
        except OSError as error:
            raise UserError(
                f"--ranges {self.folder}: cannot be written: {error.strerror}. What is there stays; call again when it can"
            ) from error
        return True

    def findings(self) -> list[Finding]:
        """What all ranges show together."""
        known = {
            (part.split, place): fact
            for part in self.ranges
            for place, fact in zip(part.places, self.facts[part.number], strict=True)
        }
        found = findings_of(self.splits, {place: fact.look for place, fact in known.items()})
        of_masks = Findings()
        for image, fact in known.items():
            for kind, where, detail in fact.masks:
                of_masks.add(kind, where, detail, image)
        return [*found, *of_masks]


def _ranges(splits: dict[str, Split], size: int) -> list[Range]:
    found: list[Range] = []
    for name, split in splits.items():
        places = [place for _, place in readable_places({name: split})]
        for start in range(0, len(places), size):
            found.append(Range(len(found), name, tuple(places[start : start + size])))
    return found


def examined(
    splits: dict[str, Split],
    ranges: Sequence[Range],
    progress: Callable[[], object] = lambda: None,
    workers: int = 1,
) -> Iterator[tuple[Range, list[Facts]]]:
    """Look at ranges with a pool of processes on this machine.

    Yields: each range as soon as it is done, with what its images show.
    """
    with_masks = {
        name
        for name, split in splits.items()
        if not split.dense and split.objects.masks is not None
    }
    tasks = [
        (part, row, of_masks)
        for part in ranges
        for row in range(len(part.places))
        for of_masks in ([False, True] if part.split in with_masks else [False])
    ]
    open_ranges: dict[int, dict[tuple[int, bool], Any]] = {}
    for item, result in isolated(
        partial(_look_at_task, splits, tasks),
        len(tasks),
        workers,
        # Of masks nothing is given up: how long they take is their number's doing.
        lambda item: DAY_S if tasks[item][2] else LONGEST_S,
    ):
        part, row, of_masks = tasks[item]
        if of_masks and isinstance(result, Lost):
            raise RuntimeError(
                f"masks of image {part.places[row]} of {part.split}: {result.reason}"
            )
        results = open_ranges.setdefault(part.number, {})
        results[row, of_masks] = result if of_masks else of_worker(result)
        if not of_masks:
            progress()
        if len(results) == len(part.places) * (2 if part.split in with_masks else 1):
            del open_ranges[part.number]
            yield (
                part,
                [
                    Facts(results[row, False], tuple(results.get((row, True), ())))
                    for row in range(len(part.places))
                ],
            )


def _look_at_task(
    splits: dict[str, Split], tasks: Sequence[tuple[Range, int, bool]], item: int
) -> Look | list[Defect]:
    part, row, of_masks = tasks[item]
    split, place = splits[part.split], part.places[row]
    return mask_defects(split.records[place]) if of_masks else look(split, place)


def piece_of(split: Split, part: Range) -> Split:
    """All that is needed to look at a range, for a process that has not read the dataset."""
    images: Any = Subset(split.images, part.places)
    if isinstance(split.images[part.places[0]], Path):
        images = ImageFiles([split.images[place] for place in part.places])  # type: ignore[misc]
    return Split([split.records[place] for place in part.places], images, {}, split.dense)


def examine_piece(code: dict[str, Any], piece: Split) -> list[Facts]:
    """What the images of a piece show.

    Args:
        code: `made_by` of the process that joins the facts.

    Raises:
        UserError: if this process would find something else.
    """
    if made_by() != code:
        raise UserError(
            f"this process ({ROOT}) has other code or packages than the one that began: {made_by()}, and not {code}"
        )
    ((_, facts),) = examined({"": piece}, [Range(0, "", tuple(range(len(piece))))])
    return facts


@functools.cache
def made_by() -> dict[str, Any]:
    """What decides, beside the images, what is found."""
    code = hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in MADE_FROM))
    packages = {package: version(package) for package in MADE_BY}
    return {
        "format": FORMAT,
        "code": code.hexdigest()[:20],
        "packages": packages,
        "formats": list(readable_formats()),
    }


def origin_of(split: Split, part: Range) -> dict[str, Any]:
    """What the facts of a range are made from."""
    records = [split.records[place] for place in part.places]
    content = hashlib.sha256()
    for place, record in zip(part.places, records, strict=True):
        content.update(_state(split, place).encode() + b"\n")
        if not split.dense and record.objects.masks is not None:
            _add_objects(content, record)
    return {
        **made_by(),
        "split": part.split,
        "first": records[0].where,
        "last": records[-1].where,
        "images": len(records),
        "content": content.hexdigest(),
    }


def _state(split: Split, place: int) -> str:
    """What tells an encoded image from another one, or from what it was before."""
    try:
        source = split.file(place)
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        stat = source.stat()
    except (OSError, UserError):
        return "-"
    beginning_and_end = split.records[place].digest
    return f"{beginning_and_end} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _add_objects(content: Any, record: Record) -> None:
    """All that what is said of its masks depends on."""
    objects = record.objects
    content.update(repr((record.where, record.unit, record.width, record.height)).encode())
    for column in (objects.boxes, objects.classes, objects.iscrowd, objects.numbers):
        content.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    for mask in objects.masks if objects.masks is not None else ():
        content.update(mask.key())


def _file(folder: Path, part: Range, origin: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:20]
    return folder / f"range-{part.number:06d}-{name}.json"


def _read(file: Path, origin: dict[str, Any]) -> list[Facts] | None:
    """None if they are not there, or damaged, or of something else."""
    try:
        content = json.loads(file.read_bytes())
        if content["made_from"] != origin:
            return None
        facts = [_of_json(entry) for entry in content["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if len(facts) == origin["images"] else None


def _to_json(fact: Facts) -> dict[str, Any]:
    seen = fact.look
    known: dict[str, Any] = {"size": seen.size, "pixels": seen.digest.hex()}
    if seen.defect is not None:
        known["defect"] = seen.defect
    return known | ({"masks": fact.masks} if fact.masks else {})


def _of_json(known: dict[str, Any]) -> Facts:
    width, height = known["size"]
    defect: tuple[str, str] | None = None
    if "defect" in known:
        kind, detail = known["defect"]
        defect = str(kind), str(detail)
    masks = tuple((str(k), str(where), str(detail)) for k, where, detail in known.get("masks", ()))
    return Facts(Look((int(width), int(height)), bytes.fromhex(known["pixels"]), defect), masks)
