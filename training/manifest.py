"""The list of a checkpoint's files with their sizes and checksums, by which damage shows."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from disk import flush
from errors import UserError

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write size and sha256 of all files of a checkpoint, and flush it."""
    files = {
        file: {"bytes": (folder / file).stat().st_size, "sha256": _sha256(folder / file)}
        for file in _files(folder)
    }
    (folder / MANIFEST).write_text(_manifest_text(files))
    flush(folder / MANIFEST)
    flush(folder)


def find_defect(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are as they were written.

    Raises:
        UserError: if they cannot be read at present, which says nothing about them.
    """
    try:
        text = (folder / MANIFEST).read_text()
        listed = json.loads(text)["files"]
        if text != _manifest_text(listed):
            return f"{MANIFEST} was changed"
        present = set(_files(folder))
        for file, entry in listed.items():
            if file not in present:
                return f"{file} is missing"
            size = (folder / file).stat().st_size
            if size != entry["bytes"]:
                return f"{file} has {size} bytes instead of {entry['bytes']}"
            if _sha256(folder / file) != entry["sha256"]:
                return f"{file} was changed"
        if foreign := sorted(present - set(listed)):
            return f"{foreign[0]} does not belong to it"
    except (FileNotFoundError, NotADirectoryError):
        return f"{MANIFEST} is missing"
    except OSError as error:
        raise UserError(f"{folder}: cannot be read now: {error}; try again") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def _manifest_text(files: Mapping[str, Mapping[str, object]]) -> str:
    """One spelling, with a checksum of itself: any changed byte shows."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=2, sort_keys=True) + "\n"


def _files(folder: Path) -> Iterator[str]:
    """Relative names of all files but the manifest and hidden ones (NFS and macOS make those)."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name != MANIFEST and not path.name.startswith("."):
            yield name


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
