"""Files with the encoded images of a packed dataset, mapped."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.pieces import spans_of
from errors import UserError

SIZES = "shards.json"


@dataclass(frozen=True)
class PackedImages:
    """Images of a split, by their numbers in the shards."""

    shards: "Shards"
    numbers: np.ndarray

    def __getitem__(self, index: int) -> bytes:
        return self.shards.image(int(self.numbers[index]))


class Shards:
    """Mapped files with the encoded images of both splits, numbered through."""

    def __init__(self, folder: Path, size: int):
        """
        Args:
            size: images of each file but the last.
        """
        self.folder = folder
        self.size = size
        self._mapped: dict[int, pa.Array] = {}

    def file(self, shard: int) -> Path:
        """Where a shard is."""
        return self.folder / f"images-{shard:05d}.arrow"

    def image(self, number: int) -> bytes:
        """
        Raises:
            UserError: if it could not be read when the dataset was packed, or its shard is not there.
        """
        shard, row = divmod(number, self.size)
        if shard not in self._mapped:
            self._mapped[shard] = self.column(shard)
        content = self._mapped[shard][row].as_buffer()
        if content is None:
            raise UserError(
                f"image {number} of {self.folder}: could not be read when the dataset was packed"
            )
        return content.to_pybytes()

    def column(self, shard: int) -> pa.Array:
        """The encoded images of a file, mapped.

        Raises:
            UserError: if it cannot be read.
        """
        return self.mapped(shard)[0].column("image")

    def mapped(self, shard: int) -> tuple[pa.RecordBatch, int]:
        """A file, mapped, and where in memory it begins.

        Raises:
            UserError: if it cannot be read.
        """
        try:
            whole = pa.memory_map(str(self.file(shard))).read_buffer()
            batch = pa.ipc.open_file(whole).get_batch(0)
            batch.validate(full=True)  # a wrong offset would end the process
            if batch.schema.names != ["image", "digest"]:
                raise ValueError("it has other columns")
            return batch, whole.address
        except (OSError, ValueError, IndexError) as error:  # Arrow's errors are among them
            raise UserError(f"{self.file(shard)}: cannot be read: {error}") from error

    def damaged(self) -> list[str] | None:
        """Names of files that do not have the size with which they were written (a mapped file that is too short
        would end the process); None if the sizes are not there."""
        try:
            sizes: dict[str, int] = json.loads((self.folder / SIZES).read_text())
            if not sizes:
                return None
            return [name for name, size in sizes.items() if size_of(self.folder / name) != size]
        except (OSError, ValueError, AttributeError, RecursionError):
            return None

    def spans(self, shard: int) -> pa.Table:
        """Where its images are in the file.

        Raises:
            UserError: if it cannot be read.
        """
        batch, begin = self.mapped(shard)
        _, offsets, content = batch.column("image").buffers()
        ends = np.frombuffer(offsets, np.int64, len(batch) + 1)
        there = batch.column("image").is_valid().to_numpy(zero_copy_only=False)
        starts = ends[:-1] + (content.address - begin if content is not None else 0)
        sizes = np.where(there, np.diff(ends), -1)
        return spans_of(starts, sizes, batch.column("digest").to_numpy(), shard * self.size)

    def images(self, places: pa.Array) -> PackedImages:
        """The images of some numbers."""
        return PackedImages(self, places.to_numpy())


def size_of(file: Path) -> int | None:
    """Bytes of a file; None if it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return None
