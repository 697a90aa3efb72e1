"""What every reader gives and every later step takes: splits, and where their pixels are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from data.objects import Objects
from data.record import Record
from data.table import RecordTable
from data.window import Window


class EncodedImages(Protocol):
    """Where a split's images come from, still encoded (JPEG, PNG, ...)."""

    def __getitem__(self, index: int) -> Path | bytes | Window:
        """File or file content of image `index` of the split, or what is wanted of it."""
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
    def table(self) -> RecordTable:
        """The records as columns."""
        return (
            self.records if isinstance(self.records, RecordTable) else RecordTable.of(self.records)
        )

    @property
    def objects(self) -> Objects:
        """Those of all images, by place."""
        if isinstance(self.records, RecordTable):
            return self.records.objects
        return Objects.of_images([record.objects for record in self.records])

    def file(self, index: int) -> Path | bytes:
        """File or content of image `index`, of the whole one where the split has a window of it."""
        source = self.images[index]
        return source.source if isinstance(source, Window) else source

    def subset(self, indices: Sequence[int]) -> "Split":
        """The split that holds only `indices`, in that order."""
        records = [self.records[i] for i in indices]
        return replace(self, records=records, images=Subset(self.images, tuple(indices)))


@dataclass(frozen=True)
class Subset:
    """Some of the images, in an order of their own."""

    images: EncodedImages
    indices: tuple[int, ...]

    def __getitem__(self, index: int) -> Path | bytes | Window:
        return self.images[self.indices[index]]
