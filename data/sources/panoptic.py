"""Panoptic label maps: a number for every segment, and a list of segments {id, category_id, iscrowd?}.

COCO's form is an annotation file whose annotations have a `file_name` and `segments_info`, and the label maps in
a folder of its name without `.json`; image folders and the Hub have both in a row. Numbers of segments are in
the colours, red + 256 green + 65536 blue. Format: https://cocodataset.org/#format-data, panoptic.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.findings import Findings
from data.record import Record
from data.regions import MOST_PARTS, TooManyValuesError, rles_of
from data.schema import Split
from data.sources.files import ImageFiles, Inside, note_unlisted
from data.sources.label_pictures import (
    MOST_VALUES,
    many_values,
    open_pair,
    read_numbers,
    record_of,
)
from data.sources.values import as_flag, as_id, as_int, short
from settings.tasks import Labels


def is_panoptic(content: dict[str, Any]) -> bool:
    """Whether the annotations of a COCO file are panoptic ones."""
    annotations = content.get("annotations")
    entries = annotations if isinstance(annotations, list) else []
    return any(isinstance(entry, dict) and "segments_info" in entry for entry in entries)


def read_panoptic(
    content: dict[str, Any],
    file: Path,
    entries: dict[int | str, dict[str, Any]],
    folder: Path,
    inside: Inside,
    names: dict[int, str],
    findings: Findings,
    labels: Labels,
) -> Split:
    """The split of a panoptic COCO file.

    Args:
        entries: of the images, by their ids. names: of the categories. labels: masks leaves out stuff.
    """
    maps = file.with_suffix("")
    stuff = stuff_of(content)
    by_image = _by_image(content["annotations"], file, entries, findings)
    records: list[Record] = []
    paths: list[Path] = []
    listed: list[Path] = []
    for image_id, entry in entries.items():
        where = f"{file}, image {image_id!r}"
        path = inside.join(folder, entry["file_name"], where, findings)
        annotation = by_image.get(image_id, {})
        name = annotation.get("file_name")
        if path is None:
            continue
        listed.append(path)
        if not isinstance(name, str) or not name:
            findings.add("missing label map", str(path), f"no annotation in {file}")
            continue
        label_map = inside.join(maps, name, where, findings)
        if label_map is None:
            continue
        segments = annotation.get("segments_info")
        record = panoptic_record(image_id, str(path), path, label_map, segments, findings)
        if record is None:
            continue
        if labels == "masks":
            single = ~np.isin(record.objects.classes, list(stuff))
            record = replace(record, objects=record.objects.take(single))
        records.append(record)
        paths.append(path)
    note_unlisted(folder, listed, findings)
    dense = labels != "masks"
    names = names if dense else {c: name for c, name in names.items() if c not in stuff}
    return Split(records, ImageFiles(paths), names, dense, frozenset(stuff))


def _by_image(
    annotations: Sequence[Any], file: Path, images: Collection[int | str], findings: Findings
) -> dict[int | str, dict[str, Any]]:
    """The annotation of each image; what cannot be one is a finding."""
    found: dict[int | str, dict[str, Any]] = {}
    for place, entry in enumerate(annotations):
        where = f"{file}, annotation at place {place}"
        image_id = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
        if image_id is None:
            findings.add("broken row", where, f"{short(entry)} has no image_id")
        elif image_id not in images:
            findings.add("annotation without image", where, f"of image {short(image_id)}")
        elif image_id in found:
            findings.add("broken row", where, f"image {short(image_id)} has one before")
        else:
            found[image_id] = entry
    return found


def stuff_of(content: dict[str, Any]) -> set[int]:
    """Category ids that the file says are no things (`isthing` 0)."""
    entries = content.get("categories")
    listed = entries if isinstance(entries, list) else []
    found = [entry for entry in listed if isinstance(entry, dict)]
    ids = {as_int(entry.get("id")) for entry in found if as_int(entry.get("isthing")) == 0}
    return {category for category in ids if category is not None}


def panoptic_record(
    image_id: int | str,
    where: str,
    source: Path | bytes | None,
    label_source: Path | bytes,
    segments: Any,
    findings: Findings,
    of_table: bool = False,
) -> Record | None:
    """Record of an image with its segments; None, and a finding, if they cannot be used.

    Args:
        of_table: null stands for what is not there.
    """
    listed = _listed(segments, where, findings, of_table)
    if listed is None:
        return None
    if len(listed) > MOST_PARTS:
        detail = f"{len(listed):,} segments, and {MOST_PARTS:,} of an image can be told apart"
        findings.add("label map of too many values", where, detail)
        return None
    opened = open_pair(
        where, source, label_source, lambda file: segment_numbers(read_numbers(file)), findings
    )
    if opened is None:
        return None
    try:
        rles = rles_of(opened.labels, len(listed) + 1 + MOST_VALUES)
    except TooManyValuesError as error:
        others = [number for number in error.values if number and number not in listed]
        findings.add("label map of too many values", where, many_values(others))
        return None
    rles.pop(0, None)
    if differing := sorted(rles.keys() ^ listed.keys()):
        detail = f"segment(s) {', '.join(map(str, differing[:5]))} are in one of them alone"
        findings.add("segments and label map disagree", where, detail)
    parts = {n: (rles[n], *listed[n]) for n in listed if n in rles}
    return record_of(image_id, where, "segment", opened, parts)


def segment_numbers(pixels: np.ndarray) -> np.ndarray:
    """int64 [H, W] of a picture's pixels, [H, W] or [H, W, 3 or 4].

    Raises:
        ValueError: if they are no whole numbers.
    """
    if pixels.dtype.kind not in "ui" or pixels.min() < 0:
        raise ValueError(f"its numbers are {pixels.dtype}, not those of segments")
    if pixels.ndim == 2:
        return pixels.astype(np.int64)
    channels = pixels[..., :3].astype(np.int64)
    if channels.shape[2] < 3:
        return channels[..., 0]
    return channels @ np.array([1, 256, 65536])


def _listed(
    segments: Any, where: str, findings: Findings, of_table: bool
) -> dict[int, tuple[int, bool]] | None:
    """(category, whether it is a crowd) by the numbers of segments; None, and a finding, if broken."""
    if (
        isinstance(segments, dict)
        and len({len(v) for v in segments.values() if isinstance(v, list)}) == 1
    ):
        keys = [key for key, column in segments.items() if isinstance(column, list)]
        columns = (
            segments[key] for key in keys
        )  # as older versions of the datasets library give it
        segments = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(segments, list):
        findings.add("broken row", where, f"segments_info is {short(segments)}, not a list")
        return None
    listed = {}
    for place, segment in enumerate(segments):
        values = segment if isinstance(segment, dict) else {}
        number, category = as_int(values.get("id")), as_int(values.get("category_id"))
        if number is None or category is None or number <= 0 or number in listed:
            detail = f"segment at place {place}: {short(segment)} needs an id of its own and a category_id"
            findings.add("broken row", where, detail)
            return None
        given = values.get("iscrowd", 0)
        crowd = as_flag(0 if given is None and of_table else given)
        if crowd is None:
            detail = f"segment at place {place}: iscrowd is {short(given)}, neither 0 nor 1"
            findings.add("broken row", where, detail)
            return None
        listed[number] = (category, crowd)
    return listed
