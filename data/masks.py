"""Masks of objects: how files give them, and the planes that training makes of them.

A mask is a `Polygons` or an `Rle`, in pixels of a picture of its own `size`, which may be another size
of the same picture. Run lengths that come from files are checked by `data.sources.segmentations` before
they become an `Rle`: the C++ code that reads them trusts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from scipy import ndimage

from data.boxes import from_corners
from data.objects import Objects

CELL_PX = 4
"""Side of the squares of pixels whose covered part is a mask's target in training"""
CELL_PIXELS = CELL_PX * CELL_PX


@dataclass(frozen=True)
class Rle:
    """Run lengths, column by column, compressed as COCO does."""

    size: tuple[int, int]
    """(height, width), px"""
    counts: bytes

    def coco(self) -> dict[str, Any]:
        """As annotation files and result lists have it."""
        return {"size": list(self.size), "counts": self.counts.decode("ascii")}

    def key(self) -> bytes:
        """What tells it from another mask."""
        return repr(self.size).encode() + self.counts


@dataclass(frozen=True)
class Polygons:
    """What lies inside of any of the rings."""

    size: tuple[int, int]
    """(height, width), px"""
    rings: tuple[np.ndarray, ...]
    """float64 [k, 2]: x, y of the corners, px"""

    def stretched(self, size: tuple[int, int]) -> "Polygons":
        """On the picture made `size` (height, width)."""
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0]])
        return Polygons(size, tuple(ring * scale for ring in self.rings))

    def key(self) -> bytes:
        """What tells it from another mask."""
        return repr(self.size).encode() + b"|".join(ring.tobytes() for ring in self.rings)


Mask = Rle | Polygons


def mask_column(masks: Sequence[Mask]) -> np.ndarray:
    """The masks of a table's objects as a column, object [n]."""
    cells = np.empty(len(masks), dtype=object)
    cells[:] = masks
    return cells


def to_rle(mask: Mask, size: tuple[int, int]) -> Rle:
    """Run lengths of a mask on the picture made `size` (height, width).

    Polygons are filled as pycocotools fills them.
    """
    if isinstance(mask, Rle):
        return mask if mask.size == size else encode(_plane(*pixels_of(mask, size), size))
    rings = [ring.ravel().tolist() for ring in mask.stretched(size).rings]
    parts = mask_api.frPyObjects(rings, *size)
    counts = mask_api.merge(parts)["counts"] if len(parts) > 1 else parts[0]["counts"]
    return Rle(size, _as_bytes(counts))


def merged(masks: Sequence[Rle]) -> Rle:
    """What any of the masks covers; they are of one size."""
    if len(masks) == 1:
        return masks[0]
    coded = [{"size": list(mask.size), "counts": mask.counts} for mask in masks]
    return Rle(masks[0].size, _as_bytes(mask_api.merge(coded)["counts"]))


def rle_of_runs(first: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> Rle:
    """Of the pixels of a picture of `size` (height, width) that some runs cover.

    Args:
        first, end: int64 [n], rising, column by column: first pixel of each run, and that after its last. Between two
            runs there is a pixel that none covers.
    """
    free = first - np.append([0], end)[: len(first)]
    counts = np.column_stack([free, end - first]).ravel().tolist()
    if rest := size[0] * size[1] - sum(counts):
        counts.append(rest)
    coded = mask_api.frPyObjects({"size": list(size), "counts": counts}, *size)
    return Rle(size, _as_bytes(coded["counts"]))


def encode(plane: np.ndarray) -> Rle:
    """Of a bool or uint8 plane [H, W]."""
    counts = mask_api.encode(np.asfortranarray(plane, dtype=np.uint8))["counts"]
    return Rle((plane.shape[0], plane.shape[1]), _as_bytes(counts))


def encode_all(planes: np.ndarray) -> list[Rle]:
    """Of uint8 planes [n, H, W]."""
    stacked = np.asfortranarray(planes.transpose(1, 2, 0))
    return [
        Rle((planes.shape[1], planes.shape[2]), _as_bytes(rle["counts"]))
        for rle in mask_api.encode(stacked)
    ]


def runs_of(counts: bytes) -> np.ndarray:
    """Run lengths, int64 [n], of compressed ones: background first, then in turn.

    Five bits a character, each run from the third on the difference to the last but one; format:
    pycocotools' maskApi.c.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(codes & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * (ends - starts + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def pixels_of(mask: Mask, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, int64 [n] each, of a mask's pixels on the picture made `size` (height, width).

    Run lengths of another size give each pixel what the nearest one has.
    """
    if isinstance(mask, Polygons):
        mask = to_rle(mask, size)
    first, length = filled_runs(mask)
    before = np.cumsum(length) - length
    flat = np.repeat(first - before, length) + np.arange(int(length.sum()))
    columns, rows = np.divmod(flat, mask.size[0])
    if mask.size == size or not len(rows):
        return rows, columns
    top, left = rows.min(), columns.min()
    part = _plane(rows - top, columns - left, (rows.max() - top + 1, columns.max() - left + 1))
    y, x = (nearest(have, want) for have, want in zip(mask.size, size, strict=True))
    y0, y1 = np.searchsorted(y, [top, top + part.shape[0]])
    x0, x1 = np.searchsorted(x, [left, left + part.shape[1]])
    rows, columns = np.nonzero(part[y[y0:y1, None] - top, x[None, x0:x1] - left])
    return rows + y0, columns + x0


def filled_runs(mask: Rle) -> tuple[np.ndarray, np.ndarray]:
    """First pixel (column by column) and length, int64 [n] each, of the runs that a mask covers."""
    runs = runs_of(mask.counts)
    ends = np.cumsum(runs)
    first, length = ends[:-1:2][: len(runs) // 2], runs[1::2]
    return first[length > 0], length[length > 0]


def bounds(mask: Mask) -> np.ndarray:
    """float64 [4]: xyxy around a mask inside of its picture, in parts of its sides; empty at 0 if it is
    outside."""
    height, width = mask.size
    if isinstance(mask, Polygons):
        points = np.concatenate(mask.rings)
        corners = np.concatenate([points.min(axis=0), points.max(axis=0)])
    else:
        first, length = filled_runs(mask)
        if not len(first):
            return np.zeros(4)
        last = first + length - 1
        columns = (first.min() // height, last.max() // height)
        rows = (0, height - 1)
        if (first // height == last // height).all():  # no run over the end of a column
            rows = ((first % height).min(), (last % height).max())
        corners = np.array([columns[0], rows[0], columns[1] + 1, rows[1] + 1.0])
    inside = (corners / [width, height, width, height]).clip(0, 1)
    return inside if (inside[2:] > inside[:2]).all() else np.zeros(4)


def area_of(mask: Mask, size: tuple[int, int]) -> int:
    """Pixels of a mask on the picture made `size` (height, width)."""
    return int(runs_of(to_rle(mask, size).counts)[1::2].sum())


def nearest(have: int, want: int) -> np.ndarray:
    """The pixel of `have` in a row that each of `want` in its place is nearest to."""
    return ((np.arange(want) + 0.5) * have / want).astype(np.int64)


def _plane(rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    plane = np.zeros(size, dtype=bool)
    plane[rows, columns] = True
    return plane


def _as_bytes(counts: bytes | str) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else counts


@dataclass(frozen=True)
class Planes:
    """The masks of one image, drawn: object k has the value k + 1 in one of the planes.

    Most images need one plane; objects that overlap others drawn before lie on further ones. So memory
    follows pixels, not pixels times objects.
    """

    ids: np.ndarray
    """uint8 or uint16 [P, H, W]"""
    ignored: np.ndarray | None = None
    """uint8 [H, W]: 1 where nobody knows what is there (crowds, pixels without a label)"""

    @staticmethod
    def drawn(objects: Objects, size: tuple[int, int]) -> "Planes":
        """Of objects with masks, on the picture made `size` (height, width)."""
        wide = len(objects) > np.iinfo(np.uint8).max - 1
        planes = [np.zeros(size, np.uint16 if wide else np.uint8)]
        for number, mask in enumerate(objects.masks, 1):
            rows, columns = pixels_of(mask, size)
            for plane in planes:
                if not plane[rows, columns].any():
                    break
            else:
                plane = np.zeros_like(planes[0])
                planes.append(plane)
            plane[rows, columns] = number
        return Planes(np.stack(planes))

    def ignoring(self, objects: Objects) -> "Planes":
        """With the pixels of `objects` ignored, where nothing else is."""
        if not len(objects):
            return self
        crowds = Planes.drawn(objects, (self.ids.shape[1], self.ids.shape[2])).ids
        ignored = (crowds > 0).any(axis=0) & ~(self.ids > 0).any(axis=0)
        return replace(self, ignored=np.asarray(ignored, dtype=np.uint8))

    def layers(self) -> list[np.ndarray]:
        """Everything [H, W] that has to move with the image's pixels."""
        return [*self.ids, *([] if self.ignored is None else [self.ignored])]

    def unlabelled_ignored(self) -> "Planes":
        """With the pixels ignored that no object covers."""
        free = ~(self.ids > 0).any(axis=0)
        return replace(self, ignored=np.asarray(free, dtype=np.uint8))

    def with_layers(self, layers: Sequence[np.ndarray]) -> "Planes":
        """The planes after they moved, in the order of `layers`."""
        num = len(self.ids)
        ignored = None if self.ignored is None else layers[num]
        return Planes(np.stack(list(layers[:num])), ignored)

    def resized(self, size: tuple[int, int]) -> "Planes":
        """On the picture made `size` (height, width); each pixel is what the nearest one was."""
        y, x = (nearest(h, w) for h, w in zip(self.ids.shape[1:], size, strict=True))
        return self.with_layers([layer[y[:, None], x[None]] for layer in self.layers()])

    def boxes(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes around what is left of objects 0 to `num` - 1, float64 [num, 4] xywh, px, and pixels
        of each, int64 [num]; objects without a pixel have an empty box."""
        corners = np.zeros((num, 4))
        areas = np.zeros(num, np.int64)
        for plane in self.ids:
            areas += np.bincount(plane.ravel(), minlength=num + 1)[1 : num + 1]
            for index, place in enumerate(ndimage.find_objects(plane, max_label=num)):
                if place is not None:
                    y, x = place
                    corners[index] = (x.start, y.start, x.stop, y.stop)
        return from_corners(corners), areas

    def fit(self, objects: Objects) -> tuple["Planes", Objects]:
        """The objects of which a pixel is left, with boxes and areas of their masks, and planes that
        are numbered by them.

        Args:
            objects: by which the planes are numbered.
        """
        boxes, areas = self.boxes(len(objects))
        left = areas > 0
        if left.all():
            return self, replace(objects, boxes=boxes, areas=areas.astype(np.float64))
        values = np.zeros(len(objects) + 1, self.ids.dtype)
        values[1:][left] = np.arange(1, int(left.sum()) + 1)
        fitted = replace(
            objects.take(left), boxes=boxes[left], areas=areas[left].astype(np.float64)
        )
        return replace(self, ids=values[self.ids]), fitted

    def only(self, kept: np.ndarray, num: int) -> "Planes":
        """Without the objects (of `num`) that are not in `kept`, int64 places, and numbered by it."""
        if np.array_equal(kept, np.arange(num)):
            return self
        values = np.zeros(num + 1, self.ids.dtype)
        values[1 + kept] = np.arange(1, len(kept) + 1)
        return replace(self, ids=values[self.ids])

    def cells(self, num: int, canvas: tuple[int, int]) -> np.ndarray:
        """How many of the 16 pixels of each cell every object covers, uint8 [num, H / 4, W / 4].

        Args:
            canvas: (height, width), multiples of 4, that the picture is padded to.
        """
        covered = np.zeros((num, canvas[0] // CELL_PX, canvas[1] // CELL_PX), np.uint8)
        height, width = self.ids.shape[1:]
        for plane in self.ids:
            padded = np.zeros(canvas, plane.dtype)
            padded[:height, :width] = plane
            for index, place in enumerate(ndimage.find_objects(plane, max_label=num)):
                if place is None:
                    continue
                y, x = (slice(p.start // CELL_PX, -(-p.stop // CELL_PX)) for p in place)
                part = padded[
                    y.start * CELL_PX : y.stop * CELL_PX, x.start * CELL_PX : x.stop * CELL_PX
                ]
                covered[index, y, x] += in_cells(part == index + 1)
        return covered

    def ignored_cells(self, canvas: tuple[int, int]) -> np.ndarray:
        """How many of the 16 pixels of each cell are ignored, uint8 [H / 4, W / 4]."""
        padded = np.zeros(canvas, np.uint8)
        if self.ignored is not None:
            padded[: self.ignored.shape[0], : self.ignored.shape[1]] = self.ignored
        return in_cells(padded)


def in_cells(plane: np.ndarray) -> np.ndarray:
    """Sums of bool or 0/1 uint8 [H, W] over cells, uint8 [H / 4, W / 4]; sides are multiples of 4."""
    rows = sum(plane[row::CELL_PX].view(np.uint8) for row in range(CELL_PX))
    # Four neighbours are one number, of which the product has the sum of the four in its highest byte.
    four = np.ascontiguousarray(rows).view(np.uint32)
    return (four * np.uint32(0x01010101) >> np.uint32(24)).astype(np.uint8)
