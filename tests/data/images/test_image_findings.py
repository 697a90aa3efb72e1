import os
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.build import build_data
from data.findings import KINDS
from errors import UserError
from formats import write_format, write_parquet
from found import found


def png_header(width, height):
    """A PNG that declares a size and has no pixels."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


# --- images: what every reader finds through data.images.headers ---------------------------------
def png16(file):
    import cv2

    file.write_bytes(cv2.imencode(".png", np.full((64, 96, 3), 40_000, np.uint16))[1].tobytes())


def saved(mode, kind, **options):
    def save(file):
        Image.new("RGB", (96, 64), "red").convert(mode).save(file, kind, **options)

    return save


def rotated(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 96)).save(file, "JPEG", exif=exif)


IMAGES = {
    "missing image": lambda file: file.unlink(missing_ok=True),
    "empty file": lambda file: file.write_bytes(b""),
    "unreadable image": lambda file: file.write_bytes(b"not an image"),
    "absurd size": lambda file: file.write_bytes(png_header(30_000, 30_000)),
    "wrong extension": saved("RGB", "PNG"),
    "16-bit image": png16,
    "CMYK image": saved("CMYK", "JPEG"),
    "palette image": saved("P", "PNG"),
    "transparent image": saved("RGBA", "PNG"),
    "EXIF-rotated image": rotated,
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", ["coco", "imagefolder", "voc", "yolo", "hub"])
def test_defects_of_an_image_are_found_in_its_header(tmp_path, monkeypatch, name, kind):
    if (name, kind) in (("hub", "wrong extension"), ("yolo", "missing image")):
        pytest.skip("a table has no extensions, and a YOLO folder lists no images")
    cfg = write_format(tmp_path, "imagefolder" if name == "hub" else name)
    IMAGES[kind](sorted(tmp_path.rglob("*000.jpg"))[0])
    if name == "hub":
        for split in ("train", "val"):
            write_parquet(tmp_path / "hub", tmp_path / split, split)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        cfg = replace(cfg, source="hub", path=str(tmp_path / "hub"), val_split="validation")
    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", _no_pixels)
        listed, data = found(cfg)
    assert kind in [k for k, _ in listed]
    assert {k for k, _ in listed} <= {kind, "wrong extension"}
    assert all(re.search("000|row 0|line 1", where) for _, where in listed)
    left_out = KINDS[kind].remedy == "left out"
    assert len(data.train) == (7 if left_out else 8)
    assert data.train.records[-1].objects.boxes.tolist() == [pytest.approx([0, 0, 64, 48])]
    with pytest.raises(UserError, match=kind):
        build_data(cfg if left_out else replace(cfg, strict=True), 0, max_bad_images=0)


def _no_pixels(image):
    raise AssertionError("the pixels were decoded")


def test_images_of_photographs_are_not_decoded_by_what_starts_programs(tmp_path):
    """Pillow runs Ghostscript for EPS; it is not even recognised here."""
    cfg = write_format(tmp_path, "coco")
    Image.new("RGB", (96, 64)).save(tmp_path / "train/000.jpg", "EPS")
    listed, _ = found(cfg)
    assert listed == [("unreadable image", str(tmp_path / "train/000.jpg"))]


def test_pipes_are_not_waited_for(tmp_path):
    cfg = write_format(tmp_path, "coco")
    (tmp_path / "train/000.jpg").unlink()
    os.mkfifo(tmp_path / "train/000.jpg")
    assert found(cfg)[0] == [("missing image", str(tmp_path / "train/000.jpg"))]


@pytest.mark.parametrize("carrier", ["exif", "raw profile", "xmp"])
def test_png_orientation_of_the_header_is_that_of_the_decoder(tmp_path, carrier):
    from PIL import PngImagePlugin

    from data.images.decode import decode
    from data.images.headers import inspect

    file = tmp_path / "turned.png"
    image = Image.new("RGB", (200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    if carrier == "raw profile":
        content = exif.tobytes()
        info.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n")
    elif carrier == "xmp":
        text = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
            'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
            'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
        )
        info.add_itxt("XML:com.adobe.xmp", text)
    image.save(file, pnginfo=info, **({"exif": exif} if carrier == "exif" else {}))
    header = inspect(file)
    assert (header.height, header.width) == decode(file, "").shape[:2] == (200, 100)
