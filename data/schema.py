"""What every reader gives and every later step takes: records, splits and where pixels are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from data.objects import Objects


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
        """Image and annotation of box `index`, for messages."""
        numbers = self.objects.numbers
        number = index if numbers is None else int(numbers[index])
        return f"{self.where}, {number_text(self.unit, number)}"


def number_text(unit: str, number: int) -> str:
    """'annotation 17', or 'annotation at place 3' for ~3: places count from 0, as in the file's list."""
    return f"{unit} {number}" if number >= 0 else f"{unit} at place {~number}"


class EncodedImages(Protocol):
    """Where a split's images come from, still encoded (JPEG, PNG, ...)."""

    def __getitem__(self, index: int) -> Path | bytes:
        """File or file content of image `index` of the split."""
        ...


@dataclass(frozen=True)
class Split:
    """The images of one split, in a fixed order, and how to get at their pixels."""

    records: Sequence[Record]
    images: EncodedImages
    category_names: Mapping[int, str]
    """Names by the dataset's own category id; empty where the dataset has none"""
    dense: bool = False
    """From label maps: nobody knows the class of a pixel that no mask covers"""
    stuff: frozenset[int] = frozenset()
    """Category ids of what has no single objects (sky, road)"""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def objects(self) -> Objects:
        """Those of all images, by place."""
        return Objects.of_images([record.objects for record in self.records])

    def subset(self, indices: Sequence[int]) -> "Split":
        """The split that holds only `indices`, in that order."""
        records = [self.records[i] for i in indices]
        return replace(self, records=records, images=_Subset(self.images, tuple(indices)))


@dataclass(frozen=True)
class _Subset:
    images: EncodedImages
    indices: tuple[int, ...]

    def __getitem__(self, index: int) -> Path | bytes:
        return self.images[self.indices[index]]
