"""What training does to one picture: random crop, mirroring, RandAugment, random erasing.

Every random number comes from the generator handed in, so that a sample looks the same wherever and whenever it is
decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from wiseft_dist.data.decode import Pixels

if TYPE_CHECKING:
    from torchvision.transforms import RandAugment  # torchvision takes as long to import as torch

CROP_ASPECT = (3 / 4, 4 / 3)
"""Width over height of a random crop (Inception, arXiv 1409.4842)."""

ERASED_SHARE = (0.02, 0.33)
"""Share of the area that random erasing paints over (arXiv 1708.04896; torchvision's default)."""

ERASED_ASPECT = (0.3, 3.3)
"""Height over width of the erased rectangle (torchvision's default)."""

MAX_TRIES = 10
"""Rectangles that are drawn before one that fits is given up."""

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def random_crop(height: int, width: int, *, scale: tuple[float, float], random: np.random.Generator) -> Box:
    """Draw a crop of ``scale`` of the area and an aspect ratio of 3/4 to 4/3 (Inception, arXiv 1409.4842).

    Returns:
        The crop; the central square-ish one after ten misses.
    """
    for _ in range(MAX_TRIES):
        # One vector costs a fraction of four scalar draws.
        share, shape, down, right = random.random(4).tolist()
        area = height * width * _between(scale, share)
        aspect = _log_between(CROP_ASPECT, shape)
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height = min(height, round(width * 4 / 3))
    crop_width = min(width, round(height * 4 / 3))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_erase(pixels: Pixels, colour: Pixels, random: np.random.Generator) -> None:
    """Paint a random rectangle of ``pixels`` in ``colour`` (uint8 ``[3]``), in place; nothing if none fits."""
    height, width, _ = pixels.shape
    for _ in range(MAX_TRIES):
        share, shape, down, right = random.random(4).tolist()
        area, aspect = height * width * _between(ERASED_SHARE, share), _log_between(ERASED_ASPECT, shape)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            pixels[top : top + rows, left : left + columns] = colour
            return


def rand_augment(*, ops: int, magnitude: int, fill: Pixels) -> RandAugment:
    """Torchvision's RandAugment (arXiv 1909.13719); what an operation moves in from outside has the colour ``fill``."""
    from torchvision.transforms import RandAugment
    from torchvision.transforms.functional import InterpolationMode

    colour = [float(channel) for channel in fill]
    return RandAugment(ops, magnitude, interpolation=InterpolationMode.NEAREST, fill=colour)


def apply_rand_augment(augment: RandAugment, pixels: Pixels, random: np.random.Generator) -> None:
    """Augment ``pixels`` in place. Goes through Pillow, which is several times faster here than tensors."""
    with _torch_seeded(random):
        image: Image.Image = augment(Image.fromarray(pixels))
    pixels[...] = np.asarray(image)


@contextmanager
def _torch_seeded(random: np.random.Generator) -> Iterator[None]:
    """Let torch's CPU generator follow ``random``, and put it back afterwards."""
    # Not torch.manual_seed: that would seed the accelerators too, whose state is not put back.
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int(random.integers(2**63)))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])


def _log_between(limits: tuple[float, float], share: float) -> float:
    low, high = math.log(limits[0]), math.log(limits[1])
    return math.exp(low + share * (high - low))
