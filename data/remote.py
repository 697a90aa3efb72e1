"""Parts of files that lie elsewhere: on a web server, or wherever fsspec has a way to (s3, gs, hf, ...).

What fails for a while is asked for again, each time after a longer pause; what a store refuses is not. Its credentials
are its own library's to find, and no message here has anything of a request but its address.
"""

import functools
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

import fsspec
import httpx2
from fsspec.asyn import AsyncFileSystem

from errors import SourceError, UserError

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Pauses before the attempts after the first one, each longer by up to a half, so that processes do not come at once"""
TIMEOUT_S = 60.0
"""Of one attempt"""
LARGEST_WHOLE = 16 << 20
"""Bytes of a file that is asked for whole, which is a manifest"""
WEB = ("http", "https")
REFUSALS = {401, 403, 404, 405, 410, 416}
"""Answers of web servers that are the same the next time"""
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("oci",), "ocifs"),
    **dict.fromkeys(("oss",), "ossfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}
"""What fsspec needs besides, by protocol"""


class RefusedError(Exception):
    """An answer that will be the same the next time."""


class Reader(Protocol):
    """One way to get at files."""

    def __call__(self, name: str, start: int | None, end: int | None) -> bytes:
        """Bytes `start` to `end` of a file, or all of them.

        Raises:
            RefusedError: if there is no use in asking again.
        """
        ...


def is_address(place: str) -> bool:
    """Whether it is not the path of a folder."""
    return "://" in place


class Store:
    """A folder elsewhere, of which the names of the files are known."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._reader: tuple[int, Reader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "_reader": None}

    def prepare(self) -> None:
        """
        Raises:
            UserError: if there is no way to such addresses here.
        """
        self._own_reader()

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes `start` to `end` of a file, or all of them.

        Raises:
            SourceError: if they could not be had after all attempts.
        """
        return attempted(lambda: self.part(name, start, end), f"{self.address}/{name}")

    def part(self, name: str, start: int | None, end: int | None) -> bytes:
        content = self._own_reader()(name, start, end)
        if start is not None and end is not None and len(content) != end - start:
            raise OSError(f"{len(content)} bytes came of {end - start}")
        return content

    def _own_reader(self) -> Reader:
        """This process's: connections are not shared with the one that it was forked from."""
        if self._reader is None or self._reader[0] != os.getpid():
            made = _web(self.address) if _protocol(self.address) in WEB else _fsspec(self.address)
            self._reader = (os.getpid(), made)
        return self._reader[1]


def attempted(get: Callable[[], bytes], where: str) -> bytes:
    """What `get` returns at last.

    Raises:
        SourceError: if it is refused, or fails each time.
    """
    for pause in (*WAITS_S, None):
        try:
            return get()
        except (RefusedError, FileNotFoundError, PermissionError, UserError) as error:
            raise SourceError(f"{where}: {told(error)}") from None
        except Exception as error:  # each library has errors of its own
            if isinstance(error, MemoryError):
                raise
            if pause is None:
                times = len(WAITS_S) + 1
                raise SourceError(
                    f"{where}: {told(error)}, at the last of {times} attempts"
                ) from None
            time.sleep(pause * random.uniform(1.0, 1.5))
    raise AssertionError


def told(error: Exception) -> str:
    """An error in a few words, without what may be secret: queries of addresses are signatures, and longer texts may
    have the headers of a request."""
    text = " ".join(str(error).split())
    text = re.sub(r"(?<=://)[^/\s'\"@]*@", "", text)
    text = re.sub(r"\?[^\s'\"]*", "?...", text)
    text = re.sub(r"(?i)(authorization|token|bearer|signature|secret|key)\b.*", r"\1 ...", text)
    kind = "" if isinstance(error, RefusedError) else type(error).__name__
    return ": ".join(part for part in (kind, text[:200]) if part)


def _protocol(address: str) -> str:
    return address.partition("://")[0].lower()


def _web(address: str) -> Reader:
    # Proxies and certificates are those of the environment.
    client = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=True)
    return functools.partial(_web_part, client, address)


def _web_part(
    client: httpx2.Client, address: str, name: str, start: int | None, end: int | None
) -> bytes:
    headers = {"Accept-Encoding": "identity"}
    if start is not None and end is not None:
        headers["Range"] = f"bytes={start}-{end - 1}"
    with client.stream("GET", f"{address}/{name}", headers=headers) as answer:
        if answer.status_code in REFUSALS:
            raise RefusedError(f"{answer.status_code} {answer.reason_phrase}")
        if not answer.is_success:
            raise OSError(f"{answer.status_code} {answer.reason_phrase}")
        if "Range" in headers and answer.status_code != 206:
            raise RefusedError("the server gives whole files alone, not parts of them (HTTP Range)")
        most, content = LARGEST_WHOLE if start is None or end is None else end - start, bytearray()
        for part in answer.iter_bytes():
            content += part
            if len(content) > most:  # whatever it is, memory is not for it
                raise RefusedError(f"more than {most:,} bytes came")
        return bytes(content)


def _fsspec(address: str) -> Reader:
    protocol = _protocol(address)
    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        how = f"`pip install {package}`" if package else "install what it names"
        raise UserError(
            f"data.packed {address}: {protocol} needs another package ({error}); {how}"
        ) from error
    except ValueError as error:
        raise UserError(f"data.packed {address}: {told(error)}") from error
    waits = {"timeout": TIMEOUT_S} if isinstance(files, AsyncFileSystem) else {}

    def part(name: str, start: int | None, end: int | None) -> bytes:
        return files.cat_file(f"{path}/{name}", start=start, end=end, **waits)

    return part
