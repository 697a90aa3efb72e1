"""Procedural street scenes with licence plates: the embedded dataset, drawn with numpy and Pillow.

A scene is a pure function of `(seed, index, longest_px)`: nothing is stored, nothing is downloaded,
and any process draws the same pixels. A scene has a sky, a ground, buildings, posts, signs with
text (distractors), up to two cars, and a plate on most cars. About one scene in eight has no plate.

Seeds are reserved so that no detector is scored on scenes its backbone has seen:

- datasets (training, validation, tests) use seeds below `PRETRAINING_SEED_START`;
- pretraining of the shipped backbone uses seeds from `PRETRAINING_SEED_START` upwards.

Every plate that can be seen is labelled: a place where a plate would be cut by the border or by a
nearer car stays an empty bumper instead. Nothing is drawn in front of a plate.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from street.paint import (
    SUPERSAMPLE,
    Box,
    Canvas,
    background,
    font_of,
    random_colour,
    random_word,
    shade,
)

PRETRAINING_SEED_START = 1_000_000
SIDE_MULTIPLE_PX = 16
MIN_PLATE_VISIBLE = 0.9
_REFERENCE_PX = 192  # the longest side for which the sizes below are written
_PLATE_COLOURS = (
    ((240, 240, 235), (20, 20, 30)), ((235, 238, 240), (20, 40, 140)), ((238, 238, 232), (15, 15, 15)),
    ((245, 200, 40), (20, 20, 20)), ((240, 170, 30), (30, 20, 10)), ((30, 60, 170), (240, 240, 240)),
    ((20, 130, 60), (240, 240, 240)), ((25, 25, 28), (230, 230, 225)), ((225, 235, 205), (20, 90, 40)),
    ((235, 190, 210), (120, 20, 50)), ((170, 30, 30), (240, 235, 230)),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One drawn scene; boxes are COCO xywh in pixels, clipped to the image."""

    image: np.ndarray  # uint8 [H, W, 3], RGB; both sides are multiples of 16
    plate_boxes: np.ndarray  # float64 [n, 4], tight around each plate's warped quadrilateral
    car_boxes: np.ndarray  # float64 [m, 4]
    parts: np.ndarray  # uint8 [H, W], index into PART_NAMES; for pretraining only
    ids: np.ndarray  # uint8 [H, W], what can be seen of instance k is k + 1; 0 is none of them
    kinds: tuple[str, ...]  # of each instance: building, sign, car; a plate is a part of its car


@dataclass(frozen=True)
class _Car:
    left: float
    top: float
    width: float
    height: float
    is_front: bool
    plate_quad: np.ndarray | None  # float [4, 2]: top left, top right, bottom right, bottom left

    @property
    def bounds(self) -> Box:
        return self.left, self.top, self.left + self.width, self.top + self.height


def render_scene(seed: int, index: int, longest_px: int = _REFERENCE_PX) -> Scene:
    """Draw scene `index` of the dataset `seed`; its longest side is `longest_px`.

    Raises:
        ValueError: if `longest_px` is not a positive multiple of 16.
    """
    if longest_px < 2 * SIDE_MULTIPLE_PX or longest_px % SIDE_MULTIPLE_PX:
        raise ValueError(
            f"longest_px is {longest_px}; use a multiple of {SIDE_MULTIPLE_PX} from "
            f"{2 * SIDE_MULTIPLE_PX}, such as {_REFERENCE_PX}"
        )
    rng = np.random.default_rng([seed, index])
    height, width = _draw_size(rng, longest_px)
    unit = longest_px / _REFERENCE_PX
    horizon = height * rng.uniform(0.25, 0.5)
    canvas = Canvas(*background(rng, height, width, horizon))
    kinds: list[str] = []
    _draw_street(rng, canvas, horizon, unit, kinds)
    cars = _place_cars(rng, height, width, horizon, unit)
    for car in cars:
        kinds.append("car")
        with canvas.instance(len(kinds)):
            _draw_car(rng, canvas, car)
    plates = [car.plate_quad for car in cars if car.plate_quad is not None]
    plate_bounds = [(*quad.min(axis=0), *quad.max(axis=0)) for quad in plates]
    return Scene(
        image=_photograph(rng, canvas.image.reduce(SUPERSAMPLE)),
        plate_boxes=_clipped_xywh(plate_bounds, height, width),
        car_boxes=_clipped_xywh([car.bounds for car in cars], height, width),
        parts=np.asarray(canvas.parts)[::SUPERSAMPLE, ::SUPERSAMPLE].copy(),
        ids=np.asarray(canvas.ids)[::SUPERSAMPLE, ::SUPERSAMPLE].copy(),
        kinds=tuple(kinds),
    )


def _draw_size(rng: np.random.Generator, longest_px: int) -> tuple[int, int]:
    """Height and width: landscape three times in four, else portrait."""
    steps = longest_px / SIDE_MULTIPLE_PX
    shortest_px = int(rng.integers(round(0.58 * steps), int(steps) + 1)) * SIDE_MULTIPLE_PX
    return (longest_px, shortest_px) if rng.random() < 0.25 else (shortest_px, longest_px)


def _clipped_xywh(bounds: list[Box], height: int, width: int) -> np.ndarray:
    """Boxes [n, 4] as xywh, clipped to the image."""
    corners = np.array(bounds, dtype=np.float64).reshape(-1, 4)
    corners = corners.clip(0, [width, height, width, height])
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _draw_street(
    rng: np.random.Generator, canvas: Canvas, horizon: float, unit: float, kinds: list[str]
) -> None:
    """Everything behind the cars: buildings, lane marks, posts and signs; adds to the instances' kinds."""
    for _ in range(int(rng.integers(0, 5))):
        kinds.append("building")
        with canvas.instance(len(kinds)):
            _draw_building(rng, canvas, horizon, unit)
    lane = (225, 215, 120) if rng.random() < 0.3 else (215, 215, 215)
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, canvas.width), rng.uniform(horizon + 4, canvas.height)
        length, slope = rng.uniform(12, 34) * unit, rng.uniform(-6, 6) * unit
        thick = rng.uniform(1.5, 4) * unit
        points = [(x, y), (x + length, y), (x + length + slope, y + thick), (x + slope, y + thick)]
        canvas.polygon(points, lane, "lane")
    for _ in range(int(rng.integers(0, 4))):
        x, top = rng.uniform(0, canvas.width), rng.uniform(0, horizon)
        bottom = horizon + rng.uniform(0, 0.35) * canvas.height
        width = rng.uniform(1.5, 6) * unit
        canvas.rectangle((x, top, x + width, bottom), random_colour(rng, 20, 150), "post")
    for _ in range(int(rng.integers(0, 4))):
        kinds.append("sign")
        with canvas.instance(len(kinds)):
            _draw_sign(rng, canvas, horizon, unit)


def _draw_building(rng: np.random.Generator, canvas: Canvas, horizon: float, unit: float) -> None:
    left, width = rng.uniform(-20, canvas.width - 10), rng.uniform(20, 62) * unit
    top = horizon * rng.uniform(0, 0.75)
    canvas.rectangle((left, top, left + width, horizon), random_colour(rng), "building")
    if rng.random() < 0.25:
        return
    colour = random_colour(rng, 10, 250)
    pitch_x, pitch_y = rng.uniform(6, 13, 2) * unit
    fill = rng.uniform(0.45, 0.75)
    for y in np.arange(top + 3, horizon - pitch_y, pitch_y):
        for x in np.arange(left + 3, left + width - pitch_x * fill, pitch_x):
            box = (x, y, x + pitch_x * fill, y + pitch_y * fill)
            canvas.rectangle(box, colour, "building_window")


def _draw_sign(rng: np.random.Generator, canvas: Canvas, horizon: float, unit: float) -> None:
    """A round or rectangular sign with text, most often on a post."""
    x = rng.uniform(0, canvas.width)
    y = rng.uniform(8 * unit, horizon + 0.15 * canvas.height)
    is_round = rng.random() < 0.4
    half_width = rng.uniform(7, 13) * unit if is_round else rng.uniform(8, 26) * unit
    half_height = half_width if is_round else half_width * rng.uniform(0.3, 0.9)
    if rng.random() < 0.7:
        bottom = max(horizon + rng.uniform(0, 0.2) * canvas.height, y + half_height)
        thick = rng.uniform(1, 2) * unit
        canvas.rectangle((x - thick, y, x + thick, bottom), (90, 90, 95), "post")
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    colour = random_colour(rng)
    ink = (20, 20, 20) if sum(colour) > 380 else (240, 240, 240)
    if is_round:
        rim, inner = 0.75 * half_width, 0.8 * half_width
        canvas.ellipse(box, (200, 30, 30) if rng.random() < 0.6 else random_colour(rng), "sign")
        canvas.ellipse((x - inner, y - inner, x + inner, y + inner), colour, "sign")
        canvas.text(x, y, str(rng.integers(10, 99)), rim, ink)
    else:
        canvas.rectangle(box, colour, "sign")
        word = random_word(rng, 2, 6)
        size_px = min(1.4 * half_height, 2.6 * half_width / len(word))
        canvas.text(x, y, word.lower() if rng.random() < 0.5 else word, size_px, ink)


def _place_cars(
    rng: np.random.Generator, height: int, width: int, horizon: float, unit: float
) -> list[_Car]:
    """Up to two cars, the farther one first, with plates only where they are well visible."""
    count = int(rng.choice(3, p=(0.05, 0.55, 0.4)))
    cars: list[_Car] = []
    for _ in range(8 * count):
        if len(cars) == count:
            break
        car = _random_car(rng, height, width, horizon, unit)
        if all(_overlap_x(car, other) < 0.35 * min(car.width, other.width) for other in cars):
            cars.append(car)
    cars.sort(key=lambda car: car.top + car.height)
    placed = []
    for position, car in enumerate(cars):
        quad = car.plate_quad
        nearer = [other.bounds for other in cars[position + 1 :]]
        if quad is not None and _visible(quad, nearer, height, width) < MIN_PLATE_VISIBLE:
            quad = None
        placed.append(_Car(*car.bounds[:2], car.width, car.height, car.is_front, quad))
    return placed


def _overlap_x(first: _Car, second: _Car) -> float:
    left, right = max(first.left, second.left), min(first.bounds[2], second.bounds[2])
    return max(0.0, right - left)


def _visible(quad: np.ndarray, nearer: list[Box], height: int, width: int) -> float:
    """Lower bound of the share of the quad's box inside the image and free of nearer cars."""
    left, top = quad.min(axis=0).tolist()
    right, bottom = quad.max(axis=0).tolist()

    def share(box: Box) -> float:
        width_px = max(0.0, min(right, box[2]) - max(left, box[0]))
        height_px = max(0.0, min(bottom, box[3]) - max(top, box[1]))
        return width_px * height_px / ((right - left) * (bottom - top))

    return share((0, 0, width, height)) - sum(share(box) for box in nearer)


def _random_car(
    rng: np.random.Generator, height: int, width: int, horizon: float, unit: float
) -> _Car:
    largest = min(0.95 * width, 1.15 * height, 180 * unit)
    smallest = 56 * unit
    car_width = smallest * (largest / smallest) ** rng.random()
    car_height = car_width * rng.uniform(0.68, 0.9)
    nearness = (car_width - smallest) / (largest - smallest + 1e-9)
    depth = np.clip(0.35 + 0.6 * nearness + rng.normal(0, 0.15), 0.2, 1.05)
    top = horizon + depth * (height - horizon) - car_height
    left = rng.uniform(-0.25 * car_width, width - 0.75 * car_width)
    quad = None
    if rng.random() > 0.06:
        quad = _random_plate_quad(rng, left, top, car_width, car_height, unit)
    return _Car(left, top, car_width, car_height, bool(rng.random() < 0.5), quad)


def _random_plate_quad(
    rng: np.random.Generator,
    left: float,
    top: float,
    car_width: float,
    car_height: float,
    unit: float,
) -> np.ndarray:
    """Corners [4, 2] of a plate on the bumper: 24 to 68 px wide, rotated, in perspective."""
    has_two_lines = rng.random() < 0.2
    ratio, aspect = (0.3, 1.6) if has_two_lines else (0.38, 3.6)
    plate_width = np.clip(car_width * ratio * rng.uniform(0.85, 1.2), 24 * unit, 63 * unit)
    plate_height = plate_width / (aspect * rng.uniform(0.85, 1.15))
    x, y = np.array([-0.5, 0.5, 0.5, -0.5]), np.array([-0.5, -0.5, 0.5, 0.5])
    y = y * (1 + np.sign(x) * rng.uniform(-0.15, 0.15))  # turned: one side is farther away
    corners = np.stack([x * plate_width, y * plate_height], axis=1)
    corners[:, 0] += corners[:, 1] * rng.uniform(-0.25, 0.25)
    angle = math.radians(np.clip(rng.normal(0, 4), -12, 12))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre_x = left + car_width * (0.5 + np.clip(rng.normal(0, 0.05), -0.12, 0.12))
    centre_y = top + car_height * rng.uniform(0.66, 0.8)
    return corners @ turn + (centre_x, centre_y)


def _draw_car(rng: np.random.Generator, canvas: Canvas, car: _Car) -> None:
    """A front or rear view inside the car's bounds; the plate comes last and stays uncovered."""
    grey = rng.random() < 0.4
    colour = (
        shade((255, 255, 255), rng.uniform(0.08, 0.92)) if grey else random_colour(rng, 25, 240)
    )
    left, top, width, height = car.left, car.top, car.width, car.height

    def box(x0: float, y0: float, x1: float, y1: float) -> Box:
        return left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height

    def points(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return [(left + x * width, top + y * height) for x, y in pairs]

    canvas.ellipse(box(-0.06, 0.88, 1.06, 1.06), (28, 28, 30), "shadow")
    for x in (0.06, 0.78):
        canvas.rectangle(box(x, 0.8, x + 0.16, 1.0), (18, 18, 18), "wheel")
    roof, shoulder = rng.uniform(0.14, 0.24), rng.uniform(0.38, 0.46)
    cabin = points((roof, 0), (1 - roof, 0), (0.96, shoulder), (0.04, shoulder))
    canvas.polygon(cabin, shade(colour, 0.85), "car_body")
    glass = (175, 185, 200) if rng.random() < 0.5 else (45, 52, 62)
    edge = roof + 0.03
    window = points((edge, 0.05), (1 - edge, 0.05), (0.89, shoulder), (0.11, shoulder))
    canvas.polygon(window, glass, "car_window")
    body = points(
        (0.04, shoulder), (0.96, shoulder), (1, 0.52), (0.98, 0.9), (0.02, 0.9), (0, 0.52)
    )
    canvas.polygon(body, colour, "car_body")
    canvas.rectangle(box(0.01, 0.76, 0.99, 0.9), shade(colour, rng.uniform(0.4, 1.1)), "bumper")
    light = (248, 246, 215) if car.is_front else (215, 25, 28)
    width_share, light_top = rng.uniform(0.1, 0.2), rng.uniform(0.49, 0.56)
    for x in (0.04, 0.96 - width_share):
        shape = box(x, light_top, x + width_share, light_top + rng.uniform(0.11, 0.14))
        (canvas.ellipse if rng.random() < 0.4 else canvas.rectangle)(shape, light, "car_light")
    if car.is_front:
        for y in np.arange(0.5, rng.uniform(0.56, 0.66), 0.05):
            canvas.rectangle(box(0.3, y, 0.7, y + 0.025), (25, 25, 28), "grille")
    if car.plate_quad is not None:
        canvas.texture(_plate_texture(rng, car.plate_quad), car.plate_quad, "plate")


def _plate_texture(rng: np.random.Generator, quad: np.ndarray) -> Image.Image:
    """The unwarped plate: background, border, sometimes a country band, one or two lines."""
    width = round(2 * SUPERSAMPLE * float(np.linalg.norm(quad[1] - quad[0])))
    height = round(2 * SUPERSAMPLE * float(np.linalg.norm(quad[3] - quad[0])))
    background, ink = _PLATE_COLOURS[int(rng.integers(len(_PLATE_COLOURS)))]
    texture = Image.new("RGB", (width, height), background)
    pen = ImageDraw.Draw(texture)
    band = width * (0.1 if rng.random() < 0.35 else 0.0)
    pen.rectangle((0, 0, width - 1, height - 1), outline=ink, width=max(2, height // 14))
    if band:
        pen.rectangle((0, 0, band, height), fill=(25, 50, 160))
    num_lines = 2 if width < 2.3 * height else 1
    for line in range(num_lines):
        text = random_word(rng, 5, 8) if num_lines == 1 else random_word(rng, 3, 4)
        size_px = min(0.85 * height / num_lines, 1.5 * (width - band) / len(text))
        centre = (band + (width - band) / 2, height * (line + 0.5) / num_lines)
        pen.text(centre, text, ink, font_of(max(6, int(size_px))), anchor="mm")
    return texture.reduce(2)


def _photograph(rng: np.random.Generator, drawn: Image.Image) -> np.ndarray:
    """Blur, light, colour cast, vignette and sensor noise: uint8 [H, W, 3]."""
    if rng.random() < 0.6:
        drawn = drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    image = np.asarray(drawn, dtype=np.float32) / 255
    image = image ** np.float32(rng.uniform(0.75, 1.35))
    height, width = image.shape[:2]
    gain = rng.uniform(0.5, 1.2) * rng.uniform(0.87, 1.13, 3)
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    slope = rng.normal(0, 0.1, 2)
    light = 1 - rng.uniform(0, 0.25) * (x**2 + y**2) + slope[0] * x + slope[1] * y
    image *= light[..., None].astype(np.float32) * gain.astype(np.float32)
    haze = rng.uniform(0, 0.25) if rng.random() < 0.3 else 0.0
    image += np.float32(haze) * (np.float32(0.8) - image)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += noise * np.float32(rng.uniform(0.0, 0.05))
    return (image.clip(0, 1) * 255).astype(np.uint8)
