"""Files of a dataset: its folder, paths that stay inside it, the images in it."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.findings import Findings
from data.images.headers import names_of_images
from errors import UserError

LINKS = " links to "
"""In findings of links that lead out"""


@dataclass(frozen=True)
class ImageFiles:
    """Images as files on disk."""

    paths: Sequence[Path]

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]


def existing_folder(path: str) -> Path:
    """`path` as a folder.

    Raises:
        UserError: if it does not exist.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path {path}: no such folder")
    return root


class Inside:
    """Paths that a dataset's files name, which must not lead out of its folders.

    The folders are those that the configuration names, wherever they themselves link to; in a
    snapshot of the Hub's cache, the store that all its files link to counts as well.
    """

    def __init__(self, *folders: Path, links: bool = False):
        """
        Args:
            links: links may lead out (data.follow_links); names may not.
        """
        self.links = links
        roots = {folder.resolve() for folder in folders}
        roots |= {r.parent.parent / "blobs" for r in roots if r.parent.name == "snapshots"}
        self.roots = tuple(os.path.join(root, "") for root in roots)
        self.resolved: dict[str, str] = {}

    def join(self, folder: Path, name: str, where: str, findings: Findings) -> Path | None:
        """`folder / name`; None, and a finding at `where`, if that is outside."""
        inner = os.path.normpath(name.replace("\\", "/"))
        if os.path.isabs(inner) or inner.split(os.sep)[0] == os.pardir or "\0" in inner:
            findings.add("path leaves the folder", where, f"{name!r} is not below {folder}")
            return None
        path = folder / inner
        return path if self.holds(path, where, findings) else None

    def holds(self, path: Path, where: str, findings: Findings) -> bool:
        """Whether `path` is inside once links are followed; if not, there is a finding at `where`."""
        if self.links:
            return True
        try:
            target = self._resolve(str(path))
        except (OSError, RuntimeError, ValueError):  # a loop of links, an impossible name
            return True  # it cannot be read, which is found when it is opened
        if os.path.join(target, "").startswith(self.roots):
            return True
        how = " is " if target == os.path.abspath(path) else LINKS
        findings.add("path leaves the folder", where, f"{path}{how}{target}")
        return False

    def _resolve(self, path: str) -> str:
        if os.path.islink(path):
            return str(Path(path).resolve())
        folder, name = os.path.split(path)
        if folder not in self.resolved:  # once a folder, not once an image
            self.resolved[folder] = str(Path(folder).resolve())
        return os.path.join(self.resolved[folder], name)


def image_files(folder: Path) -> list[Path]:
    """All files below `folder` that are named like images, sorted; links to folders not followed."""
    return sorted(map(Path, names_of_images(folder)))


def note_unlisted(folder: Path, listed: Iterable[Path], findings: Findings) -> None:
    """A finding for every image below `folder` that is not among `listed`."""
    known = {os.path.normpath(path) for path in listed}
    unlisted = (path for path in names_of_images(folder) if os.path.normpath(path) not in known)
    for path in sorted(map(Path, unlisted)):
        findings.add("image without annotation", str(path))


def read_lines(file: Path) -> list[bytes]:
    """Lines of a text file, undecoded, since one broken line must not spoil the others.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def load_json(file: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: if it cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a JSON file: {error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: not a JSON file of data: nested too deeply") from error
