"""What an image's header says, without decoding its pixels: the one place that looks."""

import dataclasses
import functools
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from data.findings import Findings
from errors import SHORTAGES

FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF"),
    *("PPM", "JPEG2000", "AVIF", "QOI"),
)
"""Formats that are read (MPO as JPEG). Of Pillow's others some start programs (EPS), and some take any bytes (TGA)"""
EXTENSIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), ("JPEG", "MPO")),
    **dict.fromkeys((".bmp", ".dib"), ("BMP", "DIB")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",)),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), ("JPEG2000",)),
    **{".png": ("PNG",), ".webp": ("WEBP",), ".gif": ("GIF",)},
    **{".avif": ("AVIF",), ".qoi": ("QOI",)},
}
"""The formats that a file of this extension may have"""
MAX_PIXELS = 200_000_000
"""Pillow's own limit against decompression bombs, 179 megapixels, usually comes first"""
ENDS_BYTES = 4096
ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height"""


@dataclass(frozen=True)
class Header:
    """One image as its header describes it."""

    width: int
    """Width of the decoded image, EXIF orientation applied, px"""
    height: int
    """Height of the decoded image, EXIF orientation applied, px"""
    format: str
    """Pillow's name of the format"""
    mode: str
    """Pillow's mode, e.g. RGB, L, P, CMYK, I;16"""
    exif_orientation: int = 1
    """1 ... 8"""
    deep: bool = False
    """More than 8 bits a channel"""
    transparent: bool = False
    """It has an alpha channel or a transparent colour"""
    digest: str = ""
    """Hash of the file's size and its first and last ENDS_BYTES: shows that another image is in its
    place, at a price that a hundred thousand images can pay"""


@dataclass(frozen=True)
class BadHeader:
    """Why an image has no usable header."""

    kind: str
    """A key of findings.KINDS"""
    detail: str


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow can read."""
    Image.init()  # knows more than the five most common formats from then on
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_header(source: Path | bytes, where: str, findings: Findings) -> Header | None:
    """The header of a file or of a file's content; None where it cannot be used.

    Whatever is unusual about the image becomes a finding at `where`.
    """
    header = inspect(source) if isinstance(source, bytes) else inspect_file(source)
    if isinstance(header, BadHeader):
        findings.add(header.kind, where, header.detail)
        return None
    suffix = os.path.splitext(source)[1].lower() if isinstance(source, Path) else ""
    if header.format not in EXTENSIONS.get(suffix, (header.format,)):
        findings.add("wrong extension", where, f"the content is {header.format}")
    if header.exif_orientation != 1:
        findings.add("EXIF-rotated image", where, f"orientation {header.exif_orientation}")
    if header.deep:
        findings.add("16-bit image", where, f"mode {header.mode}")
    if header.mode == "CMYK":
        findings.add("CMYK image", where)
    if header.mode in ("P", "PA"):
        findings.add("palette image", where)
    if header.transparent:
        findings.add("transparent image", where, "composited on white")
    return header


def inspect(source: Path | bytes) -> Header | BadHeader:
    """What the header says; a function of the file's content alone."""
    try:
        if isinstance(source, bytes):
            return _of_stream(io.BytesIO(source), len(source))
        found = _stat(source)
        if found is None or not stat.S_ISREG(
            found.st_mode
        ):  # a pipe or a device would wait for ever
            return BadHeader("missing image", "" if found is None else "not a file")
        with open(source, "rb") as stream:
            return _of_stream(stream, found.st_size)
    except Exception as error:  # Pillow's readers raise whatever their parsing runs into
        if of_the_machine(error):
            raise
        return BadHeader("unreadable image", f"{type(error).__name__}: {error}")


def _stat(path: Path) -> os.stat_result | None:
    """None where nothing is."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # absent, or an impossible name
        return None


def names_of_images(folder: Path) -> Iterator[str]:
    """Paths below `folder` that are named like images, in no order; links to folders not followed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.join(parent, name)


def of_the_machine(error: Exception) -> bool:
    """Whether an error says nothing of the image that was to be read: the machine is short of
    descriptors or of memory. Another image in its place would make the data depend on the machine."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in SHORTAGES


inspect_file: Callable[[Path], Header | BadHeader] = inspect
"""`inspect` for files; `data.images.header_cache` puts what it remembers in front of it"""


def _of_stream(stream: BinaryIO, size: int) -> Header | BadHeader:
    if size == 0:
        return BadHeader("empty file", "0 bytes")
    try:
        with warnings.catch_warnings():  # large images, broken EXIF: neither is a defect here
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=readable_formats()) as image:
                header = _of_image(image, stream)
        if isinstance(header, Header):
            return dataclasses.replace(header, digest=_digest_of_ends(stream, size))
        return header
    except Image.DecompressionBombError as error:
        return BadHeader("absurd size", str(error))


def _digest_of_ends(stream: BinaryIO, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    for place in (0, max(0, size - ENDS_BYTES)):
        stream.seek(place)
        digest.update(stream.read(ENDS_BYTES))
    return digest.hexdigest()[:16]


def _of_image(image: Image.Image, stream: BinaryIO) -> Header | BadHeader:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        return BadHeader("absurd size", f"{width} x {height} px")
    # Not image.getexif(): for a PNG without the chunk it decodes all pixels.
    orientation = Image.Image.getexif(image).get(ORIENTATION)
    if image.format == "PNG" and orientation is None:
        orientation = _late_png_orientation(stream)
    orientation = orientation if orientation in range(1, 9) else 1
    if (
        orientation in SIDEWAYS and image.format != "TIFF"
    ):  # Pillow swaps the sides of a TIFF itself
        width, height = height, width
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    return Header(
        width,
        height,
        str(image.format),
        image.mode,
        int(orientation or 1),
        deep=image.mode[0] in "IF" or ";16" in raw,
        transparent=image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
        or "transparency" in image.info,
    )


def _late_png_orientation(stream: BinaryIO) -> int | None:
    """Orientation of an eXIf chunk behind the pixels, found by jumping from chunk to chunk."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"eXIf":
            exif = Image.Exif()
            exif.load(stream.read(min(length, 1 << 20)))
            return exif.get(ORIENTATION)
        if name == b"IEND":
            break
        stream.seek(length + 4, io.SEEK_CUR)
    return None
