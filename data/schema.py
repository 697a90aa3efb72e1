"""What every reader gives and every later step takes: records, sources and the taxonomy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from errors import UserError


@dataclass(frozen=True)
class Record:
    """One labelled image before it is decoded.

    Boxes are COCO xywh in pixels of the decoded image (EXIF orientation applied); they are kept as
    the dataset has them and cleaned by `data.cleaning`.
    """

    image_id: int | str
    where: str
    """File or row, for messages"""
    width: int
    """Width of the decoded image, px"""
    height: int
    """Height of the decoded image, px"""
    boxes: np.ndarray
    """float64 [n, 4]"""
    categories: np.ndarray
    """int64 [n]: the dataset's own category ids; class indices once a taxonomy is applied"""
    areas: np.ndarray
    """float64 [n], px^2"""
    iscrowd: np.ndarray
    """bool [n]"""
    numbers: np.ndarray | None = None
    """int64 [n]: what each annotation is called in its file: its id or line, or ~place without one"""
    unit: str = "annotation"
    """What such a number counts: annotation, object, line"""
    unreadable: bool = False
    """Its pixels cannot be had: no part of training, and missed in evaluation. The size is then the
    annotation's, or 1 x 1 where that gives none"""

    def box_where(self, index: int) -> str:
        """Image and annotation of box `index`, for messages."""
        number = index if self.numbers is None else int(self.numbers[index])
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

    def __len__(self) -> int:
        return len(self.records)

    def subset(self, indices: Sequence[int]) -> "Split":
        """The split that holds only `indices`, in that order."""
        records = [self.records[i] for i in indices]
        return Split(records, _Subset(self.images, tuple(indices)), self.category_names)


@dataclass(frozen=True)
class _Subset:
    images: EncodedImages
    indices: tuple[int, ...]

    def __getitem__(self, index: int) -> Path | bytes:
        return self.images[self.indices[index]]


@dataclass(frozen=True)
class Taxonomy:
    """The one mapping between a dataset's category ids and the class indices 0..C-1."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """category_ids[c] is the dataset's id of class c"""

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def class_indices(self, categories: np.ndarray) -> np.ndarray:
        """Class indices, int64 [n], of the dataset's category ids; -1 for an id that is none."""
        ids = np.array(self.category_ids, dtype=np.int64)
        order = np.argsort(ids)
        places = np.searchsorted(ids[order], categories).clip(max=len(ids) - 1)
        indices = order[places]
        return np.where(ids[indices] == categories, indices, -1).astype(np.int64)


def build_taxonomy(splits: Sequence[Split], labels: Sequence[str] | None) -> Taxonomy:
    """Taxonomy of the categories that the splits declare or, where they declare none, use.

    Raises:
        UserError: where `labels` does not fit the number of categories, or a name is used twice.
    """
    names: dict[int, str] = {}
    for split in splits:
        for category, name in split.category_names.items():
            if names.setdefault(category, name) != name:
                raise UserError(
                    f"category id {category} is {names[category]!r} in one split and {name!r} in the "
                    "other; their annotation files must agree"
                )
    used = {int(c) for split in splits for record in split.records for c in record.categories}
    ids = sorted(names) if names else sorted(used)
    if labels is not None:
        if not names and len(ids) < len(labels) and 0 not in ids and ids:
            raise UserError(
                f"data.labels has {len(labels)} names, and the category ids in use are {ids}: whether "
                "ids begin at 0 or 1 cannot be told; give the names in the dataset (categories.json, "
                "ClassLabel)"
            )
        if not names and max(ids, default=0) < len(labels):
            ids = list(range(len(labels)))  # plain indices, some of which may be unused
        if len(labels) != len(ids):
            raise UserError(f"data.labels has {len(labels)} names for the category ids {ids}")
        names = dict(zip(ids, labels, strict=True))
    if not ids:
        raise UserError("the dataset has no categories and no boxes: nothing to train on")
    ordered = tuple(names.get(i, str(i)) for i in ids)
    repeated = sorted({name for name in ordered if ordered.count(name) > 1})
    if repeated:
        raise UserError(f"two categories are named {repeated[0]!r}; set data.labels")
    return Taxonomy(ordered, tuple(ids))
