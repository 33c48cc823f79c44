"""Colours of the picture world: what objects usually look like, and random departures from it."""

from __future__ import annotations

import numpy as np
from PIL import ImageColor

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

LOOKS: dict[str, tuple[Colour, Colour, Colour, str]] = {
    "house": ((201, 162, 126), (143, 74, 58), (223, 232, 238), "meadow"),
    "tree": ((63, 122, 53), (107, 74, 47), (184, 67, 58), "meadow"),
    "car": ((168, 52, 47), (125, 138, 148), (197, 214, 224), "road"),
    "fish": ((217, 138, 61), (196, 98, 45), (238, 240, 234), "water"),
    "cat": ((141, 117, 96), (122, 99, 80), (217, 185, 164), "room"),
    "sailboat": ((125, 74, 51), (201, 211, 220), (242, 240, 234), "sea"),
    "flower": ((208, 81, 127), (76, 138, 60), (232, 197, 63), "meadow"),
    "mug": ((75, 127, 166), (90, 61, 44), (233, 228, 218), "room"),
    "lamp": ((230, 207, 154), (138, 106, 69), (244, 236, 210), "room"),
    "mushroom": ((181, 68, 47), (230, 220, 196), (241, 235, 222), "meadow"),
    "key": ((184, 154, 82), (141, 115, 54), (216, 196, 138), "room"),
    "rocket": ((211, 215, 219), (178, 58, 53), (233, 162, 60), "sky"),
}
"""The usual colours of body, second and accent, and the usual backdrop."""

USUAL = {"photo": 0.75, "painting": 0.45, "cartoon": 0.5}
"""How often an object has its usual colours. A model fine-tuned on photos learns to lean on them."""

BACKDROPS: dict[str, tuple[Colour, Colour]] = {
    "meadow": ((169, 201, 230), (111, 154, 75)),
    "road": ((185, 195, 201), (109, 108, 107)),
    "sea": ((188, 216, 234), (47, 109, 150)),
    "sky": ((46, 95, 158), (156, 195, 228)),
    "room": ((201, 183, 156), (134, 96, 63)),
    "water": ((63, 151, 168), (23, 79, 107)),
}
"""The far and the near colour of each photographic backdrop."""


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue in degrees and a saturation and value in percent."""
    value = min(max(value, 0), 100)
    red, green, blue = ImageColor.getrgb(f"hsv({hue % 360:.0f},{saturation:.0f}%,{value:.0f}%)")[:3]
    return red, green, blue


def jittered(colour: Colour, *, rng: np.random.Generator, by: float) -> Colour:
    """The colour, lighter or darker and a little off; ``by`` is about twice the standard deviation of a channel."""
    base = np.array(colour) + rng.normal(0, by * 0.7) + rng.normal(0, by * 0.5, 3)
    red, green, blue = base.clip(0, 255).astype(int).tolist()
    return red, green, blue
