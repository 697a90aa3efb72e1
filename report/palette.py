"""Colours of classes, and of what is no class."""

import colorsys

TRUTH = (60, 220, 60)
GROUND = (32, 32, 32)
"""Around images"""
COLOURS = [
    *((255, 70, 70), (70, 140, 255), (255, 190, 0), (220, 80, 255), (0, 210, 210)),
    *((255, 130, 40), (60, 105, 0), (255, 135, 195), (210, 225, 135), (135, 75, 30)),
    *((0, 60, 255), (195, 225, 0), (120, 75, 135), (90, 240, 165), (255, 180, 150)),
    *((105, 195, 255), (255, 15, 180), (165, 45, 75), (0, 120, 90), (210, 180, 255)),
]
"""Each as far as can be (in CIELAB) from those before it, from TRUTH, GROUND, black, white and grey"""
GOLDEN_ANGLE = 0.381966
"""Part of a circle"""


def colour_of(kind: int) -> tuple[int, int, int]:
    """RGB of a class; beyond COLOURS, hues a golden angle apart in two brightnesses."""
    if kind < len(COLOURS):
        return COLOURS[kind]
    hue = (kind * GOLDEN_ANGLE) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(
        hue, 0.55 + 0.4 * (kind % 2), 1.0 - 0.35 * (kind % 3) / 2
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever can be read on it (luma of ITU-R BT.601)."""
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return (0, 0, 0) if bright else (255, 255, 255)
