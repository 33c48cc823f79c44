"""From encoded images to uint8 pixels on the host, and from those to normalised floats on the device."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

Pixels = np.ndarray
"""uint8 ``[height, width, 3]``."""


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its images; the fields are those of open_clip's ``preprocess_cfg``."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    mode: str = "RGB"
    fill_color: int = 0

    @staticmethod
    def from_open_clip(config: dict[str, Any]) -> Preprocess:
        """From a model's ``visual.preprocess_cfg``."""
        size = config["size"]
        return Preprocess(
            size=size if isinstance(size, int) else size[0],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            resize_mode=config["resize_mode"],
            fill_color=config.get("fill_color", 0),
        )


def decode(data: bytes) -> Image.Image:
    """Decode JPEG, PNG or WebP. JPEG goes through simplejpeg; what it refuses (CMYK, damage) through Pillow."""
    if data[:2] == b"\xff\xd8":
        try:
            _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace not in ("CMYK", "YCCK"):
                space = "GRAY" if colorspace == "Gray" else "RGB"
                pixels = simplejpeg.decode_jpeg(data, colorspace=space)
                return Image.fromarray(pixels[..., 0] if space == "GRAY" else pixels)
        except ValueError:
            pass
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def evaluation_transform(preprocess: Preprocess) -> Callable[[Image.Image], Pixels]:
    """open_clip's own evaluation transform, up to the point where pixels would become floats."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**asdict(preprocess)), is_train=False)
    *steps, _to_tensor, _normalize = transform.transforms

    return partial(_apply_steps, steps=steps)


def _apply_steps(image: Image.Image, *, steps: Sequence[Callable[[Image.Image], Image.Image]]) -> Pixels:
    for step in steps:
        image = step(image)
    return np.asarray(image)


def training_transform(
    preprocess: Preprocess, scale: tuple[float, float]
) -> Callable[[Image.Image, np.random.Generator], Pixels]:
    """A random crop of the given share of the area, resized to the model's size."""
    return partial(_random_resized_crop, preprocess=preprocess, scale=scale)


def _random_resized_crop(
    image: Image.Image, random: np.random.Generator, *, preprocess: Preprocess, scale: tuple[float, float]
) -> Pixels:
    image = image.convert("RGB")
    top, left, height, width = random_crop(image.height, image.width, scale=scale, random=random)
    size = [preprocess.size, preprocess.size]
    interpolation = InterpolationMode(preprocess.interpolation)
    return np.asarray(functional.resized_crop(image, top, left, height, width, size, interpolation))


def random_crop(
    height: int, width: int, *, scale: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop of ``scale`` of the area and an aspect ratio of 3/4 to 4/3 (Inception, arXiv 1409.4842).

    Returns:
        Top, left, height and width in pixels; the central square-ish crop after ten misses.
    """
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(random.integers(0, height - crop_height + 1))
            left = int(random.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height = min(height, round(width * 4 / 3))
    crop_width = min(width, round(height * 4 / 3))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def normalize(pixels: torch.Tensor, preprocess: Preprocess, dtype: torch.dtype) -> torch.Tensor:
    """Uint8 ``[batch, height, width, 3]`` to normalised ``[batch, 3, height, width]`` on the same device."""
    mean = torch.tensor(preprocess.mean, device=pixels.device)
    std = torch.tensor(preprocess.std, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous().to(dtype)
