"""The records of a split as columns: a hundred thousand of them are a few arrays, not half a million objects.

Arrow keeps the columns, in memory or in a mapped file that all processes share; a `Record` is made when it
is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from data.masks import Mask, Polygons, Rle, mask_column
from data.objects import Objects
from data.record import Record

RINGS = pa.large_list(pa.large_list(pa.float64()))
PLAIN = ("areas", "numbers", "iscrowd")
"""Columns of objects that may be missing, with a number each"""


class Digest(Protocol):
    """A hash that is being made."""

    def update(self, data: Any, /) -> None: ...


class RecordTable(Sequence[Record]):
    """Records of a split, in order; all of their objects have the same columns."""

    def __init__(self, images: pa.RecordBatch, objects: pa.RecordBatch):
        """
        Args:
            images: one row an image, objects: one row an object, as `of` makes them.
        """
        self.images = images
        self.rows = objects
        self._text = {name: images.column(name) for name in ("image_id", "where", "unit", "digest")}
        self._is_number, self._unreadable = (
            _array(images, name).view(bool) for name in ("id_is_number", "unreadable")
        )
        self.sizes = images.column("size").flatten().to_numpy().reshape(-1, 2)
        """int64 [N, 2]: (height, width) of every decoded image, px"""
        self.counts = _array(images, "num_objects")
        """int64 [N]: objects of every image"""
        self._ends = _array(images, "end")
        self._objects = _objects(objects)

    @staticmethod
    def of(records: Sequence[Record], objects: Objects | None = None) -> "RecordTable":
        """The table of some records.

        Args:
            objects: in place of those of the records: of all images, in their order, by place in `image`.
        """
        if objects is None:
            objects = Objects.of_images([record.objects for record in records])
        counts = np.bincount(objects.image, minlength=len(records))
        ids = [record.image_id for record in records]
        sizes = np.array([(record.height, record.width) for record in records], np.int64)
        columns = {
            "image_id": _texts([str(name) for name in ids]),
            "id_is_number": np.array([isinstance(name, int) for name in ids], np.uint8),
            "where": _texts([record.where for record in records]),
            "unit": _texts([record.unit for record in records]),
            "digest": _texts([record.digest for record in records]),
            "size": pa.FixedSizeListArray.from_arrays(pa.array(sizes.ravel()), 2),
            "unreadable": np.array([record.unreadable for record in records], np.uint8),
            "num_objects": counts.astype(np.int64),
            "end": np.cumsum(counts, dtype=np.int64),
        }
        return RecordTable(pa.record_batch(columns), _batch_of(objects))

    def with_masks(self, masks: "LazyMasks | None") -> "RecordTable":
        """The same records with other masks of their objects, which are made when they are asked for; None: without."""
        table = copy(self)
        table._objects = replace(self._objects, masks=masks)
        return table

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Any) -> Any:
        """The record at a place, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self._record(place) for place in range(*index.indices(len(self)))]
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"place {index} of {len(self)} records")
        return self._record(place)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    def _record(self, place: int) -> Record:
        text = {name: _text(column[place]) for name, column in self._text.items()}
        end = int(self._ends[place])
        height, width = self.sizes[place].tolist()
        name = text["image_id"]
        return Record(
            image_id=int(name) if self._is_number[place] else name,
            where=text["where"],
            width=width,
            height=height,
            objects=self._objects.take(slice(end - int(self.counts[place]), end)),
            unit=text["unit"],
            digest=text["digest"],
            unreadable=bool(self._unreadable[place]),
        )

    @property
    def objects(self) -> Objects:
        """Those of all images, by place."""
        return replace(self._objects, image=np.repeat(np.arange(len(self)), self.counts))

    @property
    def digests(self) -> list[bytes]:
        """Of every encoded image; empty where it cannot be read."""
        return self._text["digest"].to_pylist()

    def add_to(self, digest: Digest) -> None:
        """Put ids, sizes, digests and objects (but for what they are called) into a hash."""
        for name in ("image_id", "digest"):
            for buffer in self._text[name].buffers()[1:]:
                digest.update(b"" if buffer is None else buffer)
        for array in (self._is_number, self.sizes, self.counts):
            digest.update(np.ascontiguousarray(array))
        for name, column in self._objects.columns().items():
            if name == "masks":
                digest.update(b"".join(mask.key() for mask in column))
            elif name != "numbers":
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(column))


class LazyMasks(ABC):
    """The masks of many objects as a column, each made when it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def mask(self, place: int) -> Mask:
        """That of one object."""

    def __getitem__(self, chosen: Any) -> Any:
        """One mask, or a column of some: by a slice, a mask [n] or places."""
        places = np.arange(len(self))[chosen]
        if not places.ndim:
            return self.mask(int(places))
        return mask_column([self.mask(place) for place in places.tolist()])

    def __iter__(self) -> Iterator[Mask]:
        return map(self.mask, range(len(self)))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self[:]


class _Masks(LazyMasks):
    """Those of a table's own columns."""

    def __init__(self, rows: pa.RecordBatch):
        self.sizes = np.column_stack([_array(rows, "mask_height"), _array(rows, "mask_width")])
        self.counts = rows.column("mask_counts")
        self.rings = rows.column("mask_rings")

    def __len__(self) -> int:
        return len(self.sizes)

    def mask(self, place: int) -> Mask:
        height, width = self.sizes[place].tolist()
        counts = self.counts[place].as_py()
        if counts is not None:
            return Rle((height, width), counts)
        rings = self.rings[place].values
        corners = (ring.values.to_numpy().reshape(-1, 2) for ring in rings)
        return Polygons((height, width), tuple(corners))


def _batch_of(objects: Objects) -> pa.RecordBatch:
    boxes = np.ascontiguousarray(objects.boxes, np.float64).ravel()
    columns: dict[str, Any] = {"boxes": pa.FixedSizeListArray.from_arrays(pa.array(boxes), 4)}
    columns["classes"] = np.asarray(objects.classes, np.int64)
    for name in PLAIN:
        column = getattr(objects, name)
        if column is not None:
            columns[name] = column.view(np.uint8) if column.dtype == bool else column
    if objects.masks is not None:
        masks: list[Mask] = list(objects.masks)
        columns["mask_height"] = np.array([mask.size[0] for mask in masks], np.int64)
        columns["mask_width"] = np.array([mask.size[1] for mask in masks], np.int64)
        counts = [mask.counts if isinstance(mask, Rle) else None for mask in masks]
        rings = [
            [ring.ravel() for ring in mask.rings] if isinstance(mask, Polygons) else None
            for mask in masks
        ]
        columns["mask_counts"] = pa.array(counts, pa.large_binary())
        columns["mask_rings"] = pa.array(rings, RINGS)
    return pa.record_batch(columns)


def _objects(rows: pa.RecordBatch) -> Objects:
    names = set(rows.schema.names)
    plain = {name: _array(rows, name) for name in PLAIN if name in names}
    if "iscrowd" in plain:
        plain["iscrowd"] = plain["iscrowd"].view(bool)
    return Objects(
        boxes=rows.column("boxes").values.to_numpy().reshape(-1, 4),
        classes=_array(rows, "classes"),
        masks=_Masks(rows) if "mask_counts" in names else None,
        **plain,
    )


def _array(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column of numbers, without a copy."""
    return batch.column(name).to_numpy(zero_copy_only=True)


def _texts(texts: Sequence[str]) -> pa.Array:
    """Text as bytes: names of files need not be valid UTF-8."""
    return pa.array([text.encode("utf-8", "surrogatepass") for text in texts], pa.large_binary())


def _text(cell: Any) -> str:
    return cell.as_py().decode("utf-8", "surrogatepass")
