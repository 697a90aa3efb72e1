"""From `cfg.data` to two clean splits and the taxonomy."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.cleaning import clean_boxes, repeated_boxes
from data.findings import IMAGE_KINDS, Finding, Findings, Remedy
from data.images.header_cache import cached_headers
from data.schema import Record, Split, Taxonomy, build_taxonomy
from data.splits import split_off
from errors import UserError
from settings.keys import DataConfig

READERS = {
    "synthetic": "data.sources.synthetic",
    "coco": "data.sources.coco",
    "imagefolder": "data.sources.imagefolder",
    "hub": "data.sources.hub",
    "voc": "data.sources.voc",
    "yolo": "data.sources.yolo",
}
"""Module of each `data.source`; it has read_split(cfg, which, findings) -> Split"""

MAX_LISTED = 20
"""Findings that an error names"""


@dataclass(frozen=True)
class Data:
    """Everything a run needs to know about its images. Categories are class indices here."""

    train: Split
    """Without images that cannot be read"""
    val: Split
    """With them: they count as missed"""
    taxonomy: Taxonomy
    findings: Findings
    """Everything found wrong with both splits"""

    def fingerprint(self) -> str:
        """Hash of ids, sizes, boxes and classes of both splits."""
        digest = hashlib.sha256(json.dumps(self.taxonomy.names).encode())
        for record in [*self.train.records, *self.val.records]:
            digest.update(f"{record.image_id}:{record.width}x{record.height}".encode())
            digest.update(record.boxes.tobytes() + record.categories.tobytes())
        return digest.hexdigest()


def build_data(cfg: DataConfig, seed: int, max_bad_images: int | None = None) -> Data:
    """Read both splits, map categories to class indices, clean the boxes.

    Args:
        max_bad_images: more images than these that cannot be read are refused; None: never.

    Raises:
        UserError: if the dataset cannot be read, or has defects that training cannot work around.
    """
    findings = Findings()
    try:
        data = read_data(cfg, seed, findings)
    except UserError:
        check_findings(findings, cfg.strict, max_bad_images)  # these explain more, if there are any
        raise
    check_findings(findings, cfg.strict, max_bad_images)
    return data


def read_data(cfg: DataConfig, seed: int, findings: Findings) -> Data:
    """As `build_data`, with every defect in `findings` and none refused.

    Raises:
        UserError: if there is nothing to train or to evaluate on.
    """
    if cfg.source == "synthetic":
        from data.sources.synthetic import ensure_written

        cfg = ensure_written(cfg, seed)
    reader = importlib.import_module(READERS[cfg.source])
    with cached_headers(cfg.path):
        train = reader.read_split(cfg, "train", findings)
        val = train if cfg.val_split is None else reader.read_split(cfg, "val", findings)
    if cfg.val_split is None and not cfg.val_on_train:
        train, val = split_off(train, cfg.val_fraction, seed)
    # Not before: which images are set aside does not depend on which can be read.
    train = train.subset([i for i, r in enumerate(train.records) if not r.unreadable])
    if cfg.limit is not None:
        train = train.subset(range(min(cfg.limit, len(train))))
    if cfg.val_on_train:
        val = train
    taxonomy = build_taxonomy([train, val], cfg.labels)
    train = _cleaned(train, "train", taxonomy, findings)
    val = train if cfg.val_on_train else _cleaned(val, "val", taxonomy, findings)
    for name, split in (("training", train), ("validation", val)):
        if not any(len(record.boxes) for record in split.records):
            raise UserError(f"the {name} split has {len(split)} images and not one valid box")
    return Data(train, val, taxonomy, findings)


def check_findings(findings: Findings, strict: bool, max_bad_images: int | None) -> None:
    """Refuse what training cannot work around.

    Raises:
        UserError: listing the first of the findings that are refused.
    """
    remedies: list[Remedy] = ["refused"]
    what, why = "defects that training cannot work around", "training cannot work around it"
    if strict:
        remedies += ["left out", "repaired", "converted"]
        what, why = "defects (data.strict true)", "refused by data.strict true"
    if refused := findings.of_remedy(*remedies):
        raise UserError(_listing(refused, what, why))
    bad = [finding for finding in findings if finding.kind in IMAGE_KINDS]
    if max_bad_images is not None and len(bad) > max_bad_images:
        limit = f"run.max_bad_images {max_bad_images}"
        raise UserError(
            _listing(bad, f"images that cannot be read ({limit})", f"more than {limit}")
        )


def _listing(found: Sequence[Finding], what: str, why: str) -> str:
    hint = "`python -m tools.check_data --config ...` lists all"
    if len(found) == 1:
        return f"{found[0]}: {why}; {hint}"
    lines = [f"the dataset has {len(found)} {what}:", *map(str, found[:MAX_LISTED])]
    if len(found) > MAX_LISTED:
        lines.append(f"... and {len(found) - MAX_LISTED} more")
    return "\n  ".join([*lines, hint])


def _cleaned(split: Split, name: str, taxonomy: Taxonomy, findings: Findings) -> Split:
    """The split with class indices for categories, and boxes that lie inside their images.

    All boxes of the split at once: a hundred thousand images take seconds.
    """
    records = split.records
    if not records:
        return split
    counts = np.array([len(record.boxes) for record in records])
    images = np.repeat(np.arange(len(records)), counts)
    boxes = np.concatenate([record.boxes for record in records])
    classes = taxonomy.class_indices(np.concatenate([record.categories for record in records]))
    sizes = np.array([_limits(record) for record in records])[images].reshape(-1, 2)
    clean = clean_boxes(boxes, sizes[:, 0], sizes[:, 1])
    wanted = classes[clean.kept] >= 0
    kept = clean.kept[wanted]
    problems = {
        **clean.problems,
        "unknown category": np.flatnonzero(classes < 0),
        "duplicate box": kept[repeated_boxes(boxes[kept], classes[kept], images[kept])],
    }
    firsts = np.cumsum(counts) - counts
    for place, kind in sorted((int(p), kind) for kind, places in problems.items() for p in places):
        image = int(images[place])
        _note(kind, records[image], place - int(firsts[image]), (name, image), taxonomy, findings)
    boxes = clean.boxes[wanted]
    ends = np.cumsum(np.bincount(images[kept], minlength=len(records))).tolist()
    inner = kept - firsts[images[kept]]
    cleaned = [
        _with_boxes(record, boxes[start:end], classes[kept[start:end]], inner[start:end])
        for record, start, end in zip(records, [0, *ends], ends, strict=False)
    ]
    return dataclasses.replace(split, records=cleaned)


def _with_boxes(record: Record, boxes: np.ndarray, classes: np.ndarray, kept: np.ndarray) -> Record:
    """The record with those of its boxes that are kept, as they were cleaned."""
    areas = record.areas[kept]
    usable = np.isfinite(areas) & (areas > 0)
    return dataclasses.replace(
        record,
        boxes=boxes,
        categories=classes,
        areas=np.where(usable, areas, boxes[:, 2] * boxes[:, 3]),
        iscrowd=record.iscrowd[kept],
        numbers=None if record.numbers is None else record.numbers[kept],
    )


def _limits(record: Record) -> tuple[float, float]:
    unknown = record.unreadable and (record.width, record.height) == (1, 1)
    return (np.inf, np.inf) if unknown else (record.width, record.height)


def _note(
    kind: str,
    record: Record,
    index: int,
    image: tuple[str, int],
    taxonomy: Taxonomy,
    findings: Findings,
) -> None:
    if kind == "unknown category":
        detail = f"id {record.categories[index]}, not among {list(taxonomy.category_ids)[:20]}"
    else:
        x, y, w, h = record.boxes[index].tolist()
        detail = f"xywh {x:g} {y:g} {w:g} {h:g} in {record.width} x {record.height} px"
    findings.add(kind, record.box_where(index), detail, image)
