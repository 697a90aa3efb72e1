"""Rows with `objects` {bbox, category or category_id, area?, iscrowd?, segmentation?} or with a label map, as
image folders and the Hub have them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.record import Record
from data.sources.annotations import Boxes
from data.sources.box_formats import format_of
from data.sources.label_pictures import LabelRules, dense_record
from data.sources.panoptic import panoptic_record
from data.sources.values import Unique, as_id, as_size, short
from settings.keys import DataConfig
from settings.tasks import Labels

CATEGORY_KEYS = ("category", "category_id")
LABEL_MAP_COLUMNS = (
    *("label_map", "annotation", "segmentation_map", "semantic_map", "semantic_segmentation"),
    *("mask", "segmentation", "label", "labels", "annotations"),
)
"""Usual names of the column with label maps"""


class Rows:
    """Turns rows with `objects` into records."""

    def __init__(
        self,
        cfg: DataConfig,
        names: Mapping[int, str],
        findings: Findings,
        labels: Labels = "boxes",
    ):
        """
        Args:
            names: of classes by id, empty if they have none. labels: unless boxes are wanted alone, objects get the masks of their segmentations.
        """
        self.masks = labels != "boxes"
        self.labels = labels
        self.rules = LabelRules.of(cfg, names)
        self.box_format = format_of(cfg)
        self.findings = findings
        self.image_ids = Unique("duplicate image id", findings)
        self.ids = {name: category for category, name in names.items()}
        if not names and cfg.labels is not None:
            self.ids = {name: index for index, name in enumerate(cfg.labels)}

    def record(
        self, row: Mapping[str, Any], index: int, where: str, source: Path | bytes | None
    ) -> Record | None:
        """The record of a row; None, and a finding, if it is broken or its image id repeats.

        Args:
            index: the image id of a row that has none.
        """
        given = row.get("image_id")
        image_id = index if given is None else as_id(given)
        columns = _columns(row.get("objects"), self.masks)
        if image_id is None:
            self.findings.add("broken row", where, f"its image_id is {short(given)}")
            return None
        if isinstance(columns, str):
            self.findings.add("broken row", where, columns)
            return None
        if not self.image_ids.is_new(image_id, where):
            return None
        boxes = Boxes(where, "object", self.findings, self.masks)
        for place, (box, category, area, iscrowd, segmentation) in enumerate(
            zip(*columns, strict=True)
        ):
            known = self.ids.get(category, category) if isinstance(category, str) else category
            if isinstance(known, str) and not known.strip().isdecimal():
                self.findings.add(
                    "unknown category",
                    f"{where}, object at place {place}",
                    f"{known!r}, not among {short(list(self.ids))} names; set data.labels",
                )
            else:
                crowd = 0 if iscrowd is None else iscrowd  # tables have null for what is not there
                boxes.add(~place, box, known, area, crowd, segmentation)
        size = as_size(row.get("width"), row.get("height"))
        return boxes.record(image_id, source, size, self.box_format)

    def dense_record(
        self,
        row: Mapping[str, Any],
        index: int,
        where: str,
        source: Path | bytes | None,
        label_map: Path | bytes | None,
        of_segments: bool,
    ) -> Record | None:
        """As `record`, of a row with a label map.

        Args:
            of_segments: rows of the split have `segments_info`; one without would be taken for classes.
        """
        given = row.get("image_id")
        image_id = index if given is None else as_id(given)
        if image_id is None:
            self.findings.add("broken row", where, f"its image_id is {short(given)}")
        elif not self.image_ids.is_new(image_id, where):
            pass
        elif label_map is None:
            self.findings.add("missing label map", where, "the row has none")
        elif of_segments and "segments_info" not in row:
            detail = "it has no segments_info, and other rows have"
            self.findings.add("broken row", where, detail)
        elif of_segments:
            segments = row.get("segments_info")
            return panoptic_record(
                image_id, where, source, label_map, segments, self.findings, of_table=True
            )
        else:
            return dense_record(image_id, where, source, label_map, self.rules, self.findings)
        return None


def _columns(objects: Any, with_masks: bool) -> tuple[list[Any], ...] | str:
    """(boxes, categories, areas, iscrowd, segmentations), equally long, or what is wrong with `objects`."""
    if objects is None or objects == {} or objects == []:
        return [], [], [], [], []
    if isinstance(objects, list):  # one object a box instead of one list a column
        if not all(isinstance(item, dict) for item in objects):
            return f"objects must hold columns bbox and category, not {short(objects)}"
        keys = {key for item in objects for key in item}
        objects = {key: [item.get(key) for item in objects] for key in keys}
    if not isinstance(objects, dict):
        return f"objects must hold columns bbox and category, not {short(objects)}"
    key = next((key for key in CATEGORY_KEYS if key in objects), None)
    if "bbox" not in objects or key is None:
        return f"objects needs bbox and category, has {short(', '.join(sorted(map(str, objects))))}"
    boxes, categories = objects["bbox"], objects[key]
    if not isinstance(boxes, list) or not isinstance(categories, list):
        return f"bbox is {short(boxes)} and {key} is {short(categories)}: expected two lists"
    nothing = [None] * len(boxes)
    areas = nothing if objects.get("area") is None else objects["area"]
    iscrowd = nothing if objects.get("iscrowd") is None else objects["iscrowd"]
    masks = objects.get("segmentation") if with_masks else None
    masks = nothing if masks is None else masks
    optional = {"area": areas, "iscrowd": iscrowd, "segmentation": masks}
    if not all(isinstance(column, list) for column in optional.values()):
        said = ", ".join(f"{name} is {short(column)}" for name, column in optional.items())
        return f"{said}: expected lists"
    columns = (boxes, categories, areas, iscrowd, masks)
    if len({len(column) for column in columns}) > 1:
        return (
            f"{len(boxes)} boxes, {len(categories)} categories, {len(areas)} areas, "
            f"{len(iscrowd)} iscrowd, {len(masks)} segmentations: these must be equally many"
        )
    return columns
