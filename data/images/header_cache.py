"""Headers of a dataset's image files, kept from one run to the next.

Reading the header of every image takes longer than everything else before the first step. A file
whose size and times are those of the last run has the header it had then.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from data.images import headers
from data.images.headers import BadHeader, Header, names_of_images
from disk import cache_root, end_with_parent, write_whole
from errors import process_rank

FORMAT = 3
"""Raise it when Header changes, so that old caches are not read"""
MANY = 5000
"""New images that are worth starting processes for"""
AT_ONCE = 200
NAMES = tuple(field.name for field in fields(Header))


@contextlib.contextmanager
def cached_headers(dataset: str | None, workers: int = 0) -> Iterator[None]:
    """Inside the block, headers of image files come from the cache of `dataset` where they can.

    Args:
        workers: processes that read the headers of many new images beforehand.
    """
    if dataset is None or not Path(dataset).is_dir():
        yield
        return
    cache = _Cache(cache_file(Path(dataset)))
    cache.fill(Path(dataset), workers)
    before, headers.inspect_file = headers.inspect_file, cache.inspect
    try:
        yield
    finally:
        headers.inspect_file = before
        cache.save()


def cache_file(dataset: Path) -> Path:
    """Where the headers of a dataset's folder are kept."""
    name = hashlib.sha256(str(dataset.resolve()).encode()).hexdigest()[:16]
    return cache_root() / f"headers-v{FORMAT}-{name}.json"


def _state(path: str | Path) -> list[int] | None:
    """By which a change of a file is seen; None where nothing can be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # absent, or an impossible name
        return None
    # The time of the last change of any kind, since tools may set back that of the content.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _start() -> None:
    """Let a process that reads headers end by a signal, and when the one that started it is gone, however."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


class _Cache:
    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, list] = {}
        self.changed = False
        try:
            loaded = json.loads(file.read_text())
            self.known = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            pass  # none yet, or a torn one: made anew

    def inspect(self, path: Path) -> Header | BadHeader:
        key, state = str(path), _state(path)
        if state is None:
            return headers.inspect(path)
        entry = self.known.get(key)
        if isinstance(entry, list) and entry[: len(state)] == state:
            with contextlib.suppress(TypeError):
                return Header(*entry[len(state) :])
        header = headers.inspect(path)
        if isinstance(header, Header):
            self._keep(key, state, header)
        return header

    def fill(self, folder: Path, workers: int) -> None:
        """Read the headers of all new images at once, if they are many."""
        new = [Path(name) for name in names_of_images(folder) if not self._is_known(name)]
        if workers < 2 or len(new) < MANY:
            return
        states = {path: _state(path) for path in new}
        fork = multiprocessing.get_context("fork")
        # A file that ends its process is met again, and told, where the dataset is read.
        with (
            contextlib.suppress(BrokenProcessPool),
            ProcessPoolExecutor(workers, fork, _start) as pool,
        ):
            found = pool.map(headers.inspect, new, chunksize=AT_ONCE)
            hidden = True if process_rank() else None  # None: unless it is a terminal
            shown = tqdm(found, "headers", len(new), unit=" images", delay=2, disable=hidden)
            for path, header in zip(new, shown, strict=True):
                state = states[path]
                if isinstance(header, Header) and state is not None:
                    self._keep(str(path), state, header)

    def _is_known(self, name: str) -> bool:
        entry = self.known.get(name)
        return isinstance(entry, list) and entry[:3] == _state(name)

    def _keep(self, name: str, state: list[int], header: Header) -> None:
        self.known[name] = [*state, *(getattr(header, key) for key in NAMES)]
        self.changed = True

    def save(self) -> None:
        """Write the cache, whole or not at all; a cache that cannot be written is done without."""
        if not self.changed:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, json.dumps(self.known))
