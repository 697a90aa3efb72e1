"""A checked dataset in a few large files: encoded images in shards, everything else as the dataset index has it.

A shard is a pure function of a range of images, so that any number of jobs can make them; the index is written last.
Reading maps the files: any image in any order, no name looked up, nothing parsed.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.dataset import Data
from data.elsewhere import ABOUT, INDEX, MANIFEST, SPANS, fetch_index, manifest_of
from data.images.headers import Header, inspect
from data.index import NOT_READ, load, store
from data.pieces import digest_of
from data.remote import is_address
from data.schema import Split
from data.shards import SIZES, Shards, size_of
from disk import WRITING, flush, write_whole
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels

FORMAT = 2
"""Raise it when the form changes"""
SHARD_IMAGES = 2048
MAX_NAMED = 5
ELSEWHERE = {"path", "revision", "streaming"}
"""Keys that say where a dataset was read, and not what of it"""


@dataclass(frozen=True)
class Pack:
    """A folder that is being filled with a dataset."""

    folder: Path
    data: Data
    size: int = SHARD_IMAGES
    """Images of a shard"""

    @property
    def shards(self) -> Shards:
        """Its files."""
        return Shards(self.folder, self.size)

    @property
    def splits(self) -> Sequence[Split]:
        """Those whose images are stored."""
        return (
            [self.data.train]
            if self.data.val is self.data.train
            else [self.data.train, self.data.val]
        )

    @property
    def num_images(self) -> int:
        """Of all splits."""
        return sum(map(len, self.splits))

    @property
    def num_shards(self) -> int:
        """Files with images."""
        return -(-self.num_images // self.size)

    def missing(self) -> list[int]:
        """Shards that are not there yet, or not as they were written."""
        damaged = self.shards.damaged() or []
        files = {shard: self.shards.file(shard) for shard in range(self.num_shards)}
        return [n for n, file in files.items() if not file.is_file() or file.name in damaged]

    def begin(self, cfg: DataConfig, seed: int) -> None:
        """Write what the folder will hold.

        Raises:
            UserError: if it holds something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {**_about(cfg, seed, self.data.labels), "fingerprint": self.data.fingerprint()}
        text = json.dumps({**about, "shard_images": self.size}, indent=2) + "\n"
        file = self.folder / ABOUT
        others = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if not file.exists():
            if others - {ABOUT}:
                raise UserError(
                    f"{self.folder}: is neither empty nor a packed dataset; give another folder"
                )
            write_whole(file, text)  # another job may do the same
        elif file.read_text() != text:
            raise UserError(
                f"{self.folder}: holds another dataset, or was made by other keys; give another folder"
            )

    def write(self, shard: int, progress: Callable[[], object] = lambda: None) -> None:
        """Write a shard, whole or not at all.

        Raises:
            UserError: if an image has changed since the dataset was checked.
        """
        file = self.shards.file(shard)
        first = shard * self.size
        images = [
            self._encoded(number, progress)
            for number in range(first, min(first + self.size, self.num_images))
        ]
        temporary = file.with_name(
            f"{WRITING}{file.name}"
        )  # what a killed job left is written over
        try:
            digests = np.array([digest_of(image or b"") for image in images], np.uint64)
            batch = pa.record_batch(
                {"image": pa.array(images, pa.large_binary()), "digest": digests}
            )
            with (
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_file(sink, batch.schema) as writer,
            ):
                writer.write_batch(batch)
            flush(temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the index, by which the folder becomes a dataset, and by which it is read from elsewhere.

        Raises:
            UserError: if a shard cannot be read, or has not all of its images.
        """
        for shard in range(self.num_shards):
            expected = min(self.size, self.num_images - shard * self.size)
            if len(self.shards.column(shard)) != expected:
                raise UserError(
                    f"{self.shards.file(shard)}: has not {expected} images; remove it, and call again"
                )
        files = [self.shards.file(shard) for shard in range(self.num_shards)]
        write_whole(self.folder / SIZES, json.dumps({file.name: size_of(file) for file in files}))
        if load(self.folder / INDEX, self.shards) is None:
            shutil.rmtree(self.folder / INDEX, ignore_errors=True)  # a damaged one
        ends = np.cumsum([0, *map(len, self.splits)])
        numbers = [pa.array(np.arange(*ends[turn : turn + 2])) for turn in range(len(self.splits))]
        store(self.folder / INDEX, self.data, [numbers[0], numbers[-1]])
        spans = pa.concat_tables([self.shards.spans(shard) for shard in range(self.num_shards)])
        _write_spans(self.folder / SPANS, spans)
        write_whole(self.folder / MANIFEST, manifest_of(self.folder))

    def _encoded(self, number: int, progress: Callable[[], object]) -> bytes | None:
        split, index = self.data.train, number
        if number >= len(split):
            split, index = self.data.val, number - len(split)
        progress()
        record = split.records[index]
        if record.unreadable:
            return None
        try:
            source = split.file(index)
            content = source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            raise UserError(f"{record.where}: cannot be read: {error}") from error
        header = inspect(content)
        if not isinstance(header, Header) or header.digest != record.digest:
            raise UserError(
                f"{record.where}: has changed since the dataset was checked; pack it again"
            )
        return content


def load_packed(cfg: DataConfig, seed: int, labels: Labels) -> Data:
    """The dataset in `cfg.packed`.

    Raises:
        UserError: if it is not there, not complete, or not what the configuration asks for.
    """
    packed = str(cfg.packed)
    if is_address(packed):
        folder, elsewhere = fetch_index(cfg)
        _check_about(folder, cfg, seed, labels)
        return _complete(load(folder / INDEX, elsewhere), packed)
    folder = Path(os.path.expanduser(packed))
    shards = Shards(folder, _check_about(folder, cfg, seed, labels))
    damaged = shards.damaged()
    if damaged:
        raise UserError(
            f"data.packed {packed}: {', '.join(damaged[:MAX_NAMED])} is not as it was written; call tools.pack again"
        )
    return _complete(None if damaged is None else load(folder / INDEX, shards), packed)


def _check_about(folder: Path, cfg: DataConfig, seed: int, labels: Labels) -> int:
    """Images of a shard of the dataset in a folder, which is the one that is asked for."""
    try:
        found: dict[str, Any] = json.loads((folder / ABOUT).read_text())
        size = found["shard_images"]
        if not (isinstance(size, int) and size > 0 and isinstance(found["data"], dict)):
            raise ValueError(f"{ABOUT} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.packed {cfg.packed}: is no folder that tools.pack has made ({error})"
        ) from error
    if differing := list(_differing(found, _about(cfg, seed, labels))):
        raise UserError(
            "\n  ".join([f"data.packed {cfg.packed} was made of another dataset:", *differing])
        )
    return size


def _complete(data: Data | None, packed: str) -> Data:
    if data is None:
        raise UserError(
            f"data.packed {packed}: is not complete, or damaged; call tools.pack again, it goes on where it ended"
        )
    return data


def _write_spans(file: Path, spans: pa.Table) -> None:
    """As one batch, whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, spans.schema) as writer:
        writer.write_batch(spans.combine_chunks().to_batches()[0])
    write_whole(file, sink.getvalue().to_pybytes())


def _about(cfg: DataConfig, seed: int, labels: Labels) -> dict[str, Any]:
    """What of a configuration decides what is read."""
    unused = NOT_READ | ELSEWHERE
    if cfg.source != "synthetic":
        unused = unused | {"synthetic_train", "synthetic_val"}
    keys = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in unused}
    drawn = cfg.source == "synthetic" or (cfg.val_split is None and not cfg.val_on_train)
    about = {"format": FORMAT, "labels": labels, "data": keys, "seed": seed if drawn else None}
    return json.loads(json.dumps(about))


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    if found.get("format") != FORMAT:
        yield "by another version of tools.pack; pack it again"
        return
    if found.get("labels") != wanted["labels"]:
        yield f"for {found.get('labels')}, and model.task wants {wanted['labels']}"
    if found.get("seed") != wanted["seed"]:
        yield f"with run.seed {found.get('seed')}, which decides what is held out; this run has {wanted['seed']}"
    for key, value in wanted["data"].items():
        if found["data"].get(key) != value:
            yield f"data.{key} was {found['data'].get(key)}, and is {value}"
