"""One labelled image before it is decoded: what every reader gives of it."""

from dataclasses import dataclass
from pathlib import Path

from data.objects import Objects

LINE = "line"
"""Unit of annotations that are in the label file of their image (YOLO)"""


@dataclass(frozen=True)
class Record:
    """One labelled image before it is decoded.

    Boxes are COCO xywh in pixels of the decoded image (EXIF orientation applied), and classes the
    dataset's category ids, both as the dataset has them; `data.cleaning` makes of them what is
    trained on.
    """

    image_id: int | str
    where: str
    """File or row, for messages"""
    width: int
    """Width of the decoded image, px"""
    height: int
    """Height of the decoded image, px"""
    objects: Objects
    """Boxes, classes, areas, iscrowd, numbers"""
    unit: str = "annotation"
    """What objects.numbers counts: annotation, object, line"""
    digest: str = ""
    """Of the encoded image's size, beginning and end (`data.images.headers`)"""
    unreadable: bool = False
    """Its pixels cannot be had: no part of training, and missed in evaluation. The size is then the
    annotation's, or 1 x 1 where that gives none"""

    def box_where(self, index: int) -> str:
        """Image, row or label file, and annotation of box `index`, for messages."""
        return annotation_where(self.where, self.unit, self._number(index))

    def box_text(self, index: int) -> str:
        """The annotation of box `index` alone."""
        return number_text(self.unit, self._number(index))

    def _number(self, index: int) -> int:
        numbers = self.objects.numbers
        return index if numbers is None else int(numbers[index])


def annotation_where(where: str, unit: str, number: int) -> str:
    """Where an annotation of an image is to be mended: its label file, if it has one of its own."""
    file = str(label_file(Path(where))) if unit == LINE else where
    return f"{file}, {number_text(unit, number)}"


def label_file(image: Path) -> Path:
    """Where the labels of an image of a YOLO dataset are."""
    parts = list(image.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def number_text(unit: str, number: int) -> str:
    """'annotation 17', or 'annotation at place 3' for ~3: places count from 0, as in the file's list."""
    return f"{unit} {number}" if number >= 0 else f"{unit} at place {~number}"
