"""What scenes are painted with: a canvas that keeps part labels, fonts, colours, noise."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PART_NAMES = (
    "sky", "ground", "lane", "building", "building_window", "post", "sign", "shadow",
    "wheel", "car_body", "car_window", "car_light", "grille", "bumper", "plate",
)  # fmt: skip

PART = {name: label for label, name in enumerate(PART_NAMES)}
INSTANCE_PARTS = frozenset(PART_NAMES) - {"sky", "ground", "lane", "post", "shadow"}
"""Parts of things that are told apart; the others lie in front of them, or behind"""
SUPERSAMPLE = 2  # shapes are drawn at twice the size: Pillow's polygons have no anti-aliasing
_LETTERS = np.array(list("ABCDEFGHJKLMNPRSTUVWXYZ0123456789"))

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class Canvas:
    """An RGB image and its part labels, drawn together in coordinates of the final image."""

    def __init__(self, background: np.ndarray, parts: np.ndarray):
        height, width = parts.shape
        size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
        self.height, self.width = height, width
        self.image = Image.fromarray(background).resize(size, Image.Resampling.NEAREST)
        self.parts = Image.fromarray(parts).resize(size, Image.Resampling.NEAREST)
        self.ids = Image.new("L", size)
        self._pens = tuple(map(ImageDraw.Draw, (self.image, self.parts, self.ids)))
        self._current = 0

    @contextmanager
    def instance(self, number: int) -> Iterator[None]:
        """What is drawn in this block, of the kinds in INSTANCE_PARTS, is instance `number`, above 0."""
        self._current = number
        yield
        self._current = 0

    def _strokes(self, colour: Colour, part: str) -> list[tuple[ImageDraw.ImageDraw, Any]]:
        number = self._current if part in INSTANCE_PARTS else 0
        return list(zip(self._pens, (colour, PART[part], number), strict=True))

    def polygon(self, points, colour: Colour, part: str) -> None:
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        for pen, fill in self._strokes(colour, part):
            pen.polygon(scaled, fill=fill)

    def rectangle(self, box: Box, colour: Colour, part: str) -> None:
        scaled = [value * SUPERSAMPLE for value in box]
        scaled[2:] = max(scaled[0], scaled[2] - 1), max(scaled[1], scaled[3] - 1)
        for pen, fill in self._strokes(colour, part):
            pen.rectangle(scaled, fill=fill)

    def ellipse(self, box: Box, colour: Colour, part: str) -> None:
        scaled = [value * SUPERSAMPLE for value in box]
        for pen, fill in self._strokes(colour, part):
            pen.ellipse(scaled, fill=fill)

    def text(self, x: float, y: float, text: str, size_px: float, colour: Colour) -> None:
        """Text centred on (x, y); it keeps the part label of what it is written on."""
        font = font_of(max(6, round(size_px * SUPERSAMPLE)))
        self._pens[0].text((x * SUPERSAMPLE, y * SUPERSAMPLE), text, colour, font, anchor="mm")

    def texture(self, texture: Image.Image, quad: np.ndarray, part: str) -> None:
        """`texture` warped onto `quad`, float [4, 2]."""
        quad = quad * SUPERSAMPLE
        left, top = (int(value) for value in np.floor(quad.min(axis=0)))
        right, bottom = (int(value) for value in np.ceil(quad.max(axis=0)))
        size = (right - left, bottom - top)
        local = [(float(x) - left, float(y) - top) for x, y in quad]
        warp = _perspective(np.array(local), texture.size)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(local, fill=255)
        warped = texture.transform(
            size, Image.Transform.PERSPECTIVE, warp, Image.Resampling.BILINEAR
        )
        self.image.paste(warped, (left, top), mask)
        self.parts.paste(PART[part], (left, top), mask)
        self.ids.paste(self._current, (left, top), mask)


@functools.cache
def font_of(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _perspective(quad: np.ndarray, texture_size: tuple[int, int]) -> tuple[float, ...]:
    """Pillow's eight coefficients that map `quad` [4, 2] back to the corners of the texture."""
    width, height = texture_size
    rows, values = [], []
    for (x, y), (u, v) in zip(
        quad, ((0, 0), (width, 0), (width, height), (0, height)), strict=True
    ):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(values, dtype=float)))


def random_colour(rng: np.random.Generator, low: int = 20, high: int = 235) -> Colour:
    red, green, blue = rng.integers(low, high, 3)
    return int(red), int(green), int(blue)


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def random_word(rng: np.random.Generator, shortest: int, longest: int) -> str:
    return "".join(rng.choice(_LETTERS, int(rng.integers(shortest, longest + 1))))


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: tuple[int, int]):
    """Float [height, width] of about unit variance, smooth over `cell` (height, width) pixels."""
    shape = (height // cell[0] + 2, width // cell[1] + 2)
    coarse = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def background(rng: np.random.Generator, height: int, width: int, horizon: float):
    """Sky and ground: image uint8 [H, W, 3] and parts uint8 [H, W]."""
    rows = int(horizon)
    grey = rng.uniform(40, 190)
    sky = rng.uniform(90, 250, (2, 3))
    ground = grey + rng.normal(0, 14, (2, 3))
    image = np.empty((height, width, 3), dtype=np.float32)
    for span, (start, end) in ((slice(0, rows), sky), (slice(rows, height), ground)):
        ramp = np.linspace(0, 1, len(range(height)[span]), dtype=np.float32)[:, None]
        image[span] = (start * (1 - ramp) + end * ramp)[:, None]
    cell = ((8, 8), (16, 24), (48, 6))[int(rng.integers(3))]
    image += rng.uniform(2, 14) * smooth_noise(rng, height, width, cell)[..., None]
    parts = np.full((height, width), PART["ground"], dtype=np.uint8)
    parts[:rows] = PART["sky"]
    return image.clip(0, 255).astype(np.uint8), parts
