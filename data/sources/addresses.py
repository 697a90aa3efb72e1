"""Files that a row of a streamed dataset names, which must belong to that dataset."""

import posixpath
import re
from pathlib import Path

ARCHIVES = {"zip", "tar", "gzip", "gz", "bz2", "xz"}
"""Protocols that only look into the file behind them"""


def own_address(address: str, dataset: str) -> bool:
    """Whether a chained address, `a::b://c::d`, leads nowhere but into the dataset.

    Every part but the last may be a path inside of an archive; the last is the file itself: below the
    local folder `dataset`, or in the Hub's repository of that name.
    """
    *outer, last = address.split("::")
    if not all(part.partition("://")[0] in ARCHIVES for part in outer):
        return False
    protocol, _, path = last.partition("://")
    folder = Path(dataset)
    if not path and ":" not in protocol.partition("/")[0]:
        protocol, path = "file", last
    if protocol == "file":
        return folder.is_dir() and Path(path).resolve().is_relative_to(folder.resolve())
    if protocol != "hf" or folder.is_dir():
        return False
    root = f"datasets/{dataset}"
    plain = posixpath.normpath(path)
    # A revision stands behind the name: hf://datasets/name@revision/file
    return path == plain and re.match(rf"{re.escape(root)}(@[^/]+)?/", plain) is not None
