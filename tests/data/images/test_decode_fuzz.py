"""Ten thousand broken images: each is decoded or refused, quickly and in bounded memory."""

import io
import multiprocessing
import resource
import signal
import warnings

import numpy as np
import pytest
from PIL import Image

from data.feed.allocator import keep_freed_memory
from data.feed.loader import start_worker
from data.images.decode import decode
from data.images.headers import Header, inspect
from errors import UserError

NUM_MUTANTS = 12_000
SEED = 1
LONGEST_S = 10
MEMORY_BYTES = 1 << 30
"""What decoding may take on top of the process before it"""


def originals():
    """(name, content) of small images in every format and many modes."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    rgb = Image.fromarray(smooth).resize((64, 48), Image.Resampling.BICUBIC)
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    deep = Image.fromarray(rng.integers(0, 65535, (48, 64), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    cases = [
        ("jpeg", rgb, "JPEG", {}),
        ("jpeg progressive", rgb, "JPEG", {"progressive": True, "quality": 95}),
        ("jpeg grey", rgb.convert("L"), "JPEG", {}),
        ("jpeg CMYK", rgb.convert("CMYK"), "JPEG", {}),
        ("jpeg EXIF", rgb, "JPEG", {"exif": exif}),
        ("png", rgb, "PNG", {}),
        ("png RGBA", alpha, "PNG", {}),
        ("png palette", rgb.quantize(16), "PNG", {"transparency": 3}),
        ("png 16-bit", deep, "PNG", {}),
        ("png EXIF", rgb, "PNG", {"exif": exif}),
        ("png 1-bit", rgb.convert("1"), "PNG", {}),
        ("png animated", rgb, "PNG", frames),
        ("gif", rgb, "GIF", {}),
        ("gif animated", rgb, "GIF", frames),
        ("bmp", rgb, "BMP", {}),
        ("bmp palette", rgb.quantize(16), "BMP", {}),
        ("webp", rgb, "WEBP", {}),
        ("webp lossless", alpha, "WEBP", {"lossless": True}),
        ("webp animated", rgb, "WEBP", frames),
        ("tiff", rgb, "TIFF", {}),
        ("tiff 16-bit", deep, "TIFF", {}),
        ("tiff EXIF", rgb, "TIFF", {"exif": exif, "compression": "packbits"}),
        *(
            (f"tiff {name}", rgb, "TIFF", {"compression": name})
            for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        ("tiff group4", rgb.convert("1"), "TIFF", {"compression": "group4"}),
    ]
    for name, image, kind, options in cases:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield name, buffer.getvalue()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with flipped bits, another header, a piece missing or doubled, or cut short."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        size = len(data)
        kind = rng.choice(["flip", "header", "number", "cut", "remove", "double"])
        if kind == "flip":
            for place in rng.integers(0, size, rng.integers(1, 20)):
                data[place : place + 1] = bytes([data[place] ^ (1 << rng.integers(8))])
        elif kind == "header":
            for place in rng.integers(0, min(size, 200), rng.integers(1, 6)):
                data[place : place + 1] = bytes([rng.choice([0, 1, 127, 128, 255])])
        elif kind == "number":  # sizes and offsets: 2 or 4 bytes, either order
            place, length = int(rng.integers(0, min(size, 400))), int(rng.choice([2, 4]))
            value = int(rng.choice([0, 1, 13000, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]))
            value %= 1 << (8 * length)
            data[place : place + length] = value.to_bytes(
                length, str(rng.choice(["big", "little"]))
            )
        elif kind == "cut":
            del data[rng.integers(0, size) :]
        else:
            start = int(rng.integers(0, size))
            piece = bytes(data[start : start + int(rng.integers(1, 200))])
            data[start : start + len(piece)] = b"" if kind == "remove" else piece * 2
    return bytes(data)


def mutants(num: int):
    sources = list(originals())
    for number in range(num):
        name, content = sources[number % len(sources)]
        yield number, name, mutated(content, np.random.default_rng([SEED, number]))


def fuzz(present, results) -> None:
    """Decode every mutant, as a data worker of a run on a CPU; what went wrong, and the counts, go into `results`."""
    start_worker(0)

    def too_long(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")
    wrong, counts = [], {"decoded": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, name, content in mutants(NUM_MUTANTS):
        present.value = number
        signal.alarm(LONGEST_S)
        sizes = {}
        for job in (decode, inspect):
            try:
                result = job(content) if job is inspect else job(content, "here")
            except UserError as error:
                counts["refused"] += job is decode
                if not str(error).startswith("here: "):
                    wrong.append(f"mutant {number} ({name}): names no place: {error}")
            except BaseException as error:
                wrong.append(f"mutant {number} ({name}): {job.__name__}: {error!r}")
            else:
                if job is decode:
                    counts["decoded"] += 1
                    if not (result.dtype == np.uint8 and result.shape[2:] == (3,)):
                        wrong.append(f"mutant {number} ({name}): {result.dtype} {result.shape}")
                    sizes["decode"] = result.shape[1::-1]
                elif job is inspect and isinstance(result, Header):
                    sizes["inspect"] = (result.width, result.height)
        if len(set(sizes.values())) > 1:
            wrong.append(f"mutant {number} ({name}): sizes {sizes}")
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    results.send((wrong, counts, grown))


def test_image_that_claims_too_many_pixels_is_refused_by_its_header():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    with pytest.raises(UserError, match="here: .*200000000 pixels"):
        decode(buffer.getvalue(), "here")


def test_whatever_a_parser_raises_is_a_broken_image(monkeypatch):
    def load(self):  # what Pillow's TIFF reader does with some broken offsets
        raise TypeError("'float' object cannot be interpreted as an integer")

    content = dict(originals())["tiff 16-bit"]
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", load)
    with pytest.raises(UserError, match="here: cannot decode the image: TypeError: 'float'"):
        decode(content, "here")


def test_large_16_bit_images_are_scaled_block_by_block():
    values = np.random.default_rng(3).integers(0, 65536, (3000, 1000), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    expected = np.round(values * (255.0 / 65535.0)).astype(np.uint8)
    np.testing.assert_array_equal(decode(buffer.getvalue(), "")[:, :, 1], expected)


@pytest.mark.slow
def test_broken_images_are_decoded_or_refused():
    keep_freed_memory()  # in the process that forks it, as a run has it
    context = multiprocessing.get_context("fork")
    present = context.Value("i", -1)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=fuzz, args=(present, sender))
    process.start()
    sender.close()
    try:
        wrong, counts, grown = receiver.recv()
    except EOFError:
        process.join()
        pytest.fail(f"mutant {present.value} ended the process with {process.exitcode}")
    process.join()
    print(counts, f"{grown / 2**20:.0f} MiB")
    assert wrong == []
    assert counts["decoded"] > NUM_MUTANTS / 10
    assert counts["refused"] > NUM_MUTANTS / 10
    assert grown < MEMORY_BYTES
