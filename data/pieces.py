"""Images of a packed dataset that lies elsewhere: which bytes of which file they are, and those of them that are here.

Images that follow each other in a file are fetched together, as a piece of about PIECE_BYTES, and kept in a folder that
processes of a machine share. Nothing is given out that has not the digest with which it was packed.
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.remote import Store, attempted
from disk import WRITING, alone
from errors import UserError

PIECE_BYTES = 1 << 20
"""Most of a piece of several images"""
USED, LOCK = ".used", ".lock"
SPARED = 0.9
"""Part of the room that is left in use when the oldest are removed"""
ABANDONED_S = 3600.0
"""Age of an unfinished file whose process is gone"""
COLUMNS = ("start", "size", "piece", "digest")


def digest_of(content: bytes) -> int:
    """Of an image, 64 bits."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def spans_of(starts: np.ndarray, sizes: np.ndarray, digests: np.ndarray, first: int) -> pa.Table:
    """Where the images of one file are.

    Args:
        starts: byte in the file, int64 [n]. sizes: bytes, -1 of what could not be read, int64 [n].
        digests: uint64 [n]. first: number of the first of them.

    Returns: their rows; `piece` is the number of the first image of the piece that an image belongs to.
    """
    pieces = np.empty(len(starts), np.int64)
    piece, held = 0, 0
    for place, size in enumerate(np.maximum(sizes, 0).tolist()):
        if held and held + size > PIECE_BYTES:
            piece, held = place, 0
        pieces[place] = piece + first
        held += size
    columns = (starts.astype(np.int64), sizes.astype(np.int64), pieces, digests.astype(np.uint64))
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))


class Spans:
    """The table of all images, mapped."""

    def __init__(self, file: Path):
        """
        Raises:
            ValueError, OSError: if it is no such table.
        """
        batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        self.start, self.size, self.piece, self.digest = (
            batch.column(name).to_numpy(zero_copy_only=True) for name in COLUMNS
        )

    def __len__(self) -> int:
        return len(self.start)

    def range_of(self, piece: int) -> range:
        """Numbers of the images of a piece."""
        return range(piece, int(np.searchsorted(self.piece, piece, "right")))

    def check(self) -> None:
        """
        Raises:
            ValueError: if what it says cannot be.
        """
        numbers = np.arange(len(self))
        first = self.piece == numbers
        length = np.maximum(self.size, 0)
        follows = (self.start[1:] == self.start[:-1] + length[:-1]) | first[1:]
        sane = (self.size >= -1).all() and (self.start >= 0).all() and follows.all()
        if not (sane and (np.maximum.accumulate(np.where(first, numbers, -1)) == self.piece).all()):
            raise ValueError("its table of images contradicts itself")


@dataclass(frozen=True)
class Cache:
    """Files of a folder, of at most `room` bytes together; whatever happens to them is a cause to fetch them again."""

    folder: Path
    room: int

    def read(self, name: str, start: int, size: int) -> bytes | None:
        """Some bytes of a file; None if it is not there, or shorter."""
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, start)
        except OSError:
            return None
        return content if len(content) == size else None

    def keep(self, name: str, content: bytes) -> None:
        """Write a file, if it can be; the oldest make room for it."""
        if len(content) > self.room:
            return
        unique = f"{os.getpid()}-{secrets.token_hex(4)}"
        temporary = self.folder / f"{WRITING}{name}-{unique}"
        try:
            with alone(self.folder / LOCK):
                used = self._used()
                if used + len(content) > self.room:
                    used = self._removed_down_to(min(SPARED * self.room, self.room - len(content)))
                (self.folder / USED).write_text(str(used + len(content)))
                with temporary.open("wb") as file:
                    file.truncate(len(content))  # so that others count it from now on
            with temporary.open("r+b") as file:
                file.write(content)
            temporary.replace(self.folder / name)
        except OSError:  # done without
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _used(self) -> int:
        """Bytes, as they were counted; a process that was killed meanwhile has left more than there are."""
        try:
            return int((self.folder / USED).read_text())
        except (OSError, ValueError):
            return sum(size for _, size, _ in self._files())

    def _removed_down_to(self, most: float) -> int:
        """Remove the oldest; bytes that are left."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used <= most:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= size
        return used

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(time, bytes, path) of each."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat()
                    unfinished = entry.name.startswith(WRITING)
                    if unfinished and found.st_mtime < time.time() - ABANDONED_S:
                        os.unlink(entry.path)
                    elif unfinished or not entry.name.startswith("."):
                        yield found.st_mtime_ns, found.st_size, entry.path


@dataclass(frozen=True)
class RemoteImages:
    """Images of a split, by their numbers in the files."""

    shards: "RemoteShards"
    numbers: np.ndarray

    def __getitem__(self, index: int) -> bytes:
        return self.shards.image(int(self.numbers[index]))


@dataclass(frozen=True)
class RemoteShards:
    """The encoded images of both splits, numbered through."""

    store: Store
    spans: Spans
    cache: Cache
    identity: str
    """Of the dataset, as it is at that address"""
    size: int
    """Images of each file but the last"""

    def image(self, number: int) -> bytes:
        """
        Raises:
            UserError: if it could not be read when the dataset was packed.
            SourceError: if it cannot be had.
        """
        spans = self.spans
        size, piece = int(spans.size[number]), int(spans.piece[number])
        if size < 0:
            raise UserError(
                f"image {number} of {self.store.address}: could not be read when the dataset was packed"
            )
        name, start = f"{self.identity}-{piece}", int(spans.start[number] - spans.start[piece])
        content = self.cache.read(name, start, size)
        if content is None or digest_of(content) != spans.digest[number]:
            whole = self._fetched(piece)
            self.cache.keep(name, whole)
            content = whole[start : start + size]
        return content

    def images(self, numbers: pa.Array) -> RemoteImages:
        """The images of some numbers.

        Raises:
            ValueError: if there are none of a number.
        """
        found = numbers.to_numpy()
        if len(found) and not 0 <= found.min() <= found.max() < len(self.spans):
            raise ValueError("it names images that are not there")
        return RemoteImages(self, found)

    def _fetched(self, piece: int) -> bytes:
        images, spans = self.spans.range_of(piece), self.spans
        begin = int(spans.start[piece])
        lengths = np.maximum(spans.size[images.start : images.stop], 0)
        end = begin + int(lengths.sum())
        name = f"images-{piece // self.size:05d}.arrow"

        def once() -> bytes:
            content = self.store.part(name, begin, end) if end > begin else b""
            for number in images:
                start, size = int(spans.start[number]) - begin, int(spans.size[number])
                if size >= 0 and digest_of(content[start : start + size]) != spans.digest[number]:
                    raise OSError(
                        "is not what was packed: damaged on its way, or another dataset has taken its place"
                    )
            return content

        return attempted(once, f"{self.store.address}/{name}")
