"""From the values of an annotation file to a record: every reader checks and converts here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.boxes import RELATIVE, VOC, read_as
from data.findings import Findings
from data.images.headers import Header, read_header
from data.masks import Polygons, Rle, mask_column
from data.objects import Objects
from data.record import LINE, Record, annotation_where
from data.sources.segmentations import mask_of_segmentation, thin_rings
from data.sources.values import as_flag, as_float, as_floats, as_int, same_shape, short


class Boxes:
    """The annotations of one image, collected one by one; broken ones become findings."""

    def __init__(self, where: str, unit: str, findings: Findings, with_masks: bool = False):
        """
        Args:
            where: the image's file or row, for messages.
            unit: what the annotations' numbers count, as in Record.
            with_masks: whether `add` gets segmentations (with relative boxes relative polygons), and
                objects without a mask are left out.
        """
        self.segmentations: list[Any] | None = [] if with_masks else None
        self.where = where
        self.unit = unit
        self.findings = findings
        self.boxes: list[list[float]] = []
        self.categories: list[int] = []
        self.areas: list[float] = []
        self.iscrowd: list[bool] = []
        self.numbers: list[int] = []
        self.others: dict[int, str] = {}

    def broken(self, number: int, detail: str) -> None:
        """Note that annotation `number` cannot be used."""
        self.findings.add("broken row", self._place(number), detail)

    def _place(self, number: int) -> str:
        return annotation_where(self.where, self.unit, number)

    def add(
        self,
        number: int,
        box: Any,
        category: Any,
        area: Any = None,
        iscrowd: Any = 0,
        segmentation: Any = None,
        box_format: str | None = None,
    ) -> None:
        """Take one annotation, or note what is wrong with it.

        Args:
            box_format: of this box, if it is another than that of the file: it was made of a segmentation.
        """
        four = as_floats(box, 4)
        known = as_int(category)
        size = 0.0 if area is None else as_float(area)
        crowd = as_flag(iscrowd)
        if four is None:
            self.broken(number, f"the box is {short(box)}, not four numbers")
        elif known is None:
            self.broken(number, f"the category is {short(category)}, not an integer")
        elif size is None:
            self.broken(number, f"the area is {short(area)}, not a number")
        elif crowd is None:
            self.broken(number, f"iscrowd is {short(iscrowd)}, neither 0 nor 1")
        else:
            if box_format is not None:
                self.others[len(self.boxes)] = box_format
            self.numbers.append(number)
            self.boxes.append(four)
            self.categories.append(known)
            self.areas.append(size)
            self.iscrowd.append(crowd)
            if self.segmentations is not None:
                self.segmentations.append(segmentation)

    def record(
        self,
        image_id: int | str,
        source: Path | bytes | None,
        annotated: tuple[int, int] | None,
        box_format: str = "xywh",
    ) -> Record:
        """The image's record.

        Args:
            source: file or content of the image; None where there is none.
            annotated: (width, height) that the annotation file gives, if it gives any.
            box_format: as `data.sources.box_formats.format_of` says.
        """
        header = self._header(source)
        unreadable = header is None
        width, height = self._size(header, annotated)
        objects = Objects(
            boxes=np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            classes=np.array(self.categories, dtype=np.int64),
            areas=np.array(self.areas, dtype=np.float64),
            iscrowd=np.array(self.iscrowd, dtype=bool),
            numbers=np.array(self.numbers, dtype=np.int64),
        )
        if len(objects) and {box_format, *self.others.values()} != {"xywh"}:
            objects = self._in_pixels(objects, box_format, width, height)
        if self.segmentations is not None:
            relative = self.unit == LINE
            picture = None if unreadable and annotated is None else (width, height)
            objects = self._masked(objects, annotated, picture, relative)
        if len(objects):
            in_px = not box_format.endswith(RELATIVE)
            other = annotated if in_px and not unreadable and annotated != (width, height) else None
            if other and same_shape(other, (width, height)):  # the same picture in another size
                objects = objects.scaled(width / other[0], height / other[1])
        digest = header.digest if header else ""
        return Record(image_id, self.where, width, height, objects, self.unit, digest, unreadable)

    def _masked(
        self,
        objects: Objects,
        annotated: tuple[int, int] | None,
        decoded: tuple[int, int] | None,
        relative: bool,
    ) -> Objects:
        """The objects that have a mask, with it; the others become findings. Sizes (width, height).

        Args:
            decoded: None if the image's size is not known. relative: polygons are in parts of the
                picture's sides.
        """
        assert self.segmentations is not None
        known = decoded or annotated or (1, 1)
        picture = annotated if annotated and same_shape(annotated, known) else known
        kept, masks = [], []
        for place, segmentation in enumerate(self.segmentations):
            mask = mask_of_segmentation(segmentation, (1, 1) if relative else picture[::-1])
            if isinstance(mask, Polygons) and relative:
                mask = mask.stretched(picture[::-1])
            detail = f"{short(segmentation)}"
            if decoded and isinstance(mask, Rle) and not same_shape(mask.size[::-1], decoded):
                detail = (
                    f"{mask.size[1]} x {mask.size[0]} px, the image has {decoded[0]} x {decoded[1]}"
                )
                mask = "mask of another size"
            if isinstance(mask, str):
                self.findings.add(mask, self._place(self.numbers[place]), detail)
                continue
            if isinstance(mask, Polygons) and (lost := thin_rings(segmentation)):
                detail = f"{len(lost)} of {len(lost) + len(mask.rings)} outlines, place {lost[0]}"
                where = self._place(self.numbers[place])
                self.findings.add("mask ring without area", where, detail)
            kept.append(place)
            masks.append(mask)
        return replace(objects.take(np.array(kept, dtype=np.int64)), masks=mask_column(masks))

    def _header(self, source: Path | bytes | None) -> Header | None:
        if source is None:
            self.findings.add("missing image", self.where, "the row has no image")
            return None
        return read_header(source, self.where, self.findings)

    def _size(self, header: Header | None, annotated: tuple[int, int] | None) -> tuple[int, int]:
        if header is None:
            return annotated or (1, 1)
        size = (header.width, header.height)
        if annotated is not None and annotated != size:
            rotated = annotated == size[::-1] and header.exif_orientation != 1
            hint = ": without its EXIF rotation; do its boxes fit?" if rotated else ""
            if not rotated:
                fits = same_shape(annotated, size)
                hint = (
                    ": boxes in pixels are scaled" if fits else ": another shape; do its boxes fit?"
                )
            self.findings.add(
                "size differs from annotation",
                self.where,
                f"{annotated[0]} x {annotated[1]} is annotated, it has {size[0]} x {size[1]} px{hint}",
            )
        return size

    def _in_pixels(self, objects: Objects, box_format: str, width: int, height: int) -> Objects:
        """With boxes as xywh in pixels, and areas that were parts of the image as well."""
        size = np.array([width, height], dtype=np.float64)
        boxes, areas = objects.boxes.copy(), objects.areas
        formats = [self.others.get(place, box_format) for place in range(len(objects))]
        with np.errstate(over="ignore", invalid="ignore"):
            for kind in sorted(set(formats)):
                chosen = np.flatnonzero([own == kind for own in formats])
                four = (
                    self._ordered(objects.take(chosen))
                    if "xyxy" in kind or kind == VOC
                    else boxes[chosen]
                )
                boxes[chosen] = read_as(four, kind, size)
            if box_format.endswith(RELATIVE):
                parts = (areas <= 1) & (boxes[:, 2:].prod(axis=1) > 1)
                areas = np.where(parts, areas * width * height, areas)
        return replace(objects, boxes=boxes, areas=areas)

    def _ordered(self, objects: Objects) -> np.ndarray:
        """Corners with the lower one first."""
        boxes = objects.boxes
        low, high = boxes[:, :2], boxes[:, 2:]
        inverted = ((high < low) & np.isfinite(boxes).all(axis=1, keepdims=True)).any(axis=1)
        for index in np.flatnonzero(inverted):
            self.findings.add(
                "box inverted",
                self._place(int(objects.numbers[index])),
                f"corners {boxes[index].tolist()}",
            )
        return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)
