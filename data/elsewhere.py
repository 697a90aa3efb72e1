"""A packed dataset at an address: its index is fetched once and kept, its images piece by piece."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.pieces import Cache, RemoteShards, Spans
from data.remote import Store
from disk import alone, cache_root, flush_all, whole_folder
from errors import SourceError, UserError
from settings.keys import DataConfig

MANIFEST, SPANS, ABOUT, INDEX = "manifest.json", "spans.arrow", "packed.json", "dataset"
FILES = {
    ABOUT,
    SPANS,
    *(f"{INDEX}/{name}.{kind}" for name in ("train", "val") for kind in ("images", "objects")),
    f"{INDEX}/rest.json",
}
"""What is fetched at the first start"""
AT_ONCE = 64 << 20
"""Bytes that are asked for at once"""
KEPT_S = 30 * 86400.0
"""After which an index that nobody has used is removed"""
GB = 1e9


def manifest_of(folder: Path) -> str:
    """What a packed dataset says of the files of its index."""
    files = {}
    for name in sorted(FILES):
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = {"size": (folder / name).stat().st_size, "sha256": digest}
    return json.dumps({"files": files}, indent=2) + "\n"


def cache_folder(cfg: DataConfig) -> Path:
    """Where index and images are kept."""
    return Path(os.path.expanduser(cfg.packed_cache_folder or cache_root() / "packed"))


def fetch_index(cfg: DataConfig) -> tuple[Path, RemoteShards]:
    """The folder in which the index of the dataset at `cfg.packed` is now, and its images.

    Raises:
        UserError: if it cannot be had, or is none.
    """
    store = Store(str(cfg.packed))
    store.prepare()
    root = cache_folder(cfg)
    try:
        text = store.read(MANIFEST)
        files = _files(text, store)
        identity = hashlib.sha256(text).hexdigest()[:16]
        folder = root / f"index-{identity}"
        with alone(root / f".index-{identity}.lock"):
            if not _is_whole(folder, files):
                shutil.rmtree(folder, ignore_errors=True)  # a damaged one
                with whole_folder(folder, shared=True) as writing:
                    _fetch(store, files, writing)
        spans = Spans(folder / SPANS)
        size = json.loads((folder / ABOUT).read_text())["shard_images"]
        (root / "pieces").mkdir(exist_ok=True)
        _forget(root, folder)
    except SourceError as error:
        raise UserError(
            f"data.packed: {error}. It has to be the address of a folder that tools.pack has made, with everything in it"
        ) from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"data.packed_cache_folder {root}: cannot be used: {error.strerror or error}"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.packed {cfg.packed}: is damaged: {error}; call tools.pack again, and copy the folder anew"
        ) from error
    cache = Cache(root / "pieces", int(cfg.packed_cache_gb * GB))
    return folder, RemoteShards(store, spans, cache, identity, size)


def _files(text: bytes, store: Store) -> dict[str, dict[str, Any]]:
    try:
        files = json.loads(text)["files"]
        sane = set(files) == FILES and all(
            type(said["size"]) is int and said["size"] >= 0 and isinstance(said["sha256"], str)
            for said in files.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sane = False
    if not sane:
        raise UserError(f"data.packed {store.address}: its {MANIFEST} is none of tools.pack")
    return files


def _is_whole(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    with contextlib.suppress(OSError):
        return all((folder / name).stat().st_size == said["size"] for name, said in files.items())
    return False


def _fetch(store: Store, files: dict[str, dict[str, Any]], folder: Path) -> None:
    (folder / INDEX).mkdir()
    for name, said in files.items():
        size, digest = said["size"], hashlib.sha256()
        with (folder / name).open("wb") as file:
            for start in range(0, size, AT_ONCE):
                part = store.read(name, start, min(start + AT_ONCE, size))
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != said["sha256"]:
            raise SourceError(
                f"{store.address}/{name}: is not what {MANIFEST} says, perhaps since it is being copied"
            )
    for mapped in sorted(FILES - {ABOUT, f"{INDEX}/rest.json"}):
        pa.ipc.open_file(pa.memory_map(str(folder / mapped))).get_batch(0).validate(full=True)
    Spans(folder / SPANS).check()
    flush_all(folder)


def _forget(root: Path, used: Path) -> None:
    """Remove indexes that nobody has used for long."""
    with contextlib.suppress(OSError):
        os.utime(used)
        for old in root.glob("index-*"):
            if time.time() - old.stat().st_mtime > KEPT_S:
                shutil.rmtree(old, ignore_errors=True)
