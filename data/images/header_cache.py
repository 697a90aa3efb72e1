"""Headers of a dataset's image files, kept from one run to the next.

Reading the header of every image takes longer than everything else before the first step. A file
whose size and times are those of the last run has the header it had then.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

from data.images import headers
from data.images.headers import BadHeader, Header
from disk import cache_root, write_whole

FORMAT = 3
"""Raise it when Header changes, so that old caches are not read"""


@contextlib.contextmanager
def cached_headers(dataset: str | None) -> Iterator[None]:
    """Inside the block, headers of image files come from the cache of `dataset` where they can."""
    if dataset is None or not Path(dataset).is_dir():
        yield
        return
    cache = _Cache(cache_file(Path(dataset)))
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
        try:
            stat = path.stat()
        except (OSError, ValueError):  # absent, or an impossible name
            return headers.inspect(path)
        # The time of the last change of any kind, since tools may set back that of the content.
        key, state = str(path), [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = self.known.get(key)
        if isinstance(entry, list) and entry[: len(state)] == state:
            with contextlib.suppress(TypeError):
                return Header(*entry[len(state) :])
        header = headers.inspect(path)
        if isinstance(header, Header):
            self.known[key] = [*state, *astuple(header)]
            self.changed = True
        return header

    def save(self) -> None:
        """Write the cache, whole or not at all; a cache that cannot be written is done without."""
        if not self.changed:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, json.dumps(self.known))
