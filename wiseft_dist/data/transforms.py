"""From encoded images to uint8 pixels on the host, and from those to normalised floats on the device."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from wiseft_dist.config import AugmentConfig
from wiseft_dist.data.augment import Box, apply_rand_augment, rand_augment, random_crop, random_erase
from wiseft_dist.data.decode import DecodeError, Decoder, Pixels, jpeg_size, pillow_image

_KERNELS = {
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
}
"""``torch.nn.functional.interpolate(antialias=True)`` on uint8, writing straight into memory of ours."""


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

    @property
    def mean_colour(self) -> Pixels:
        """The colour that normalises to about 0, uint8 ``[3]``."""
        return np.array([round(255 * channel) for channel in self.mean], np.uint8)


def evaluation_transform(
    preprocess: Preprocess, mode: Literal["fast", "exact"] = "fast", *, crop_border: int = 0
) -> EvaluationTransform:
    """open_clip's evaluation transform, up to the point where pixels would become floats.

    Args:
        preprocess: What the model expects.
        mode: ``exact`` is open_clip's own code on Pillow's pixels. ``fast`` differs from it in less than one value in a
            hundred of a photograph, by one level of 255 and hardly ever by two or three; where open_clip does other
            than resize the shortest side and crop, it is ``exact`` too.
        crop_border: Pixels cut off each side before anything else: ObjectNet's pictures have a red border of 2.
    """
    return EvaluationTransform(preprocess, mode, crop_border)


def training_transform(preprocess: Preprocess, augment: AugmentConfig) -> TrainingTransform:
    """A random crop resized to the model's size, then what else ``augment`` asks for."""
    return TrainingTransform(preprocess, augment)


class EvaluationTransform:
    """Encoded picture in, uint8 pixels out. Can be pickled and shared between threads."""

    def __init__(self, preprocess: Preprocess, mode: Literal["fast", "exact"], crop_border: int = 0) -> None:
        self.size = preprocess.size
        self._border = crop_border
        fast = mode == "fast" and preprocess.resize_mode == "shortest" and preprocess.interpolation in _KERNELS
        self._steps = None if fast else _open_clip_steps(preprocess)
        self._decode, self._resize = Decoder(), _Resize(preprocess.interpolation)

    @property
    def modules(self) -> tuple[str, ...]:
        """What a decoding process takes long to import before it can use this."""
        return () if self._steps is None else ("wiseft_dist.models.without_wandb",)

    def __call__(self, data: bytes, out: Pixels) -> None:
        """Decode, resize and crop ``data`` into ``out``, uint8 ``[size, size, 3]``.

        Raises:
            DecodeError: if ``data`` is not a picture or is damaged.
        """
        if self._steps is None:
            pixels = self._decode(data)
            top, left, bottom, right = self._inside(pixels.shape[0], pixels.shape[1])
            self._shortest_side_and_centre(pixels[top:bottom, left:right], out)
            return
        image = pillow_image(data)
        if self._border:
            top, left, bottom, right = self._inside(image.height, image.width)
            image = image.crop((left, top, right, bottom))
        for step in self._steps:
            image = step(image)
        out[...] = np.asarray(image)

    def _inside(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of what the border leaves."""
        border = self._border
        if min(height, width) <= 2 * border:
            raise DecodeError(f"{width} x {height} pixels hold nothing but a border of {border}")
        return border, border, height - border, width - border

    def _shortest_side_and_centre(self, pixels: Pixels, out: Pixels) -> None:
        height, width = shortest_side(pixels.shape[0], pixels.shape[1], self.size)
        if height == width:
            self._resize(pixels, out)
            return
        resized = self._resize.scratch(height, width)
        self._resize(pixels, resized)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        out[...] = resized[top : top + self.size, left : left + self.size]


class TrainingTransform:
    """Encoded picture and random numbers in, uint8 pixels out. Can be pickled and shared between threads."""

    def __init__(self, preprocess: Preprocess, augment: AugmentConfig) -> None:
        self.size = preprocess.size
        self._augment, self._colour = augment, preprocess.mean_colour
        self._decode, self._resize = Decoder(), _Resize(preprocess.interpolation)
        self._rand_augment = rand_augment(
            ops=augment.rand_augment_ops, magnitude=augment.rand_augment_magnitude, fill=self._colour
        )

    def __call__(self, data: bytes, out: Pixels, random: np.random.Generator) -> None:
        """Decode and augment ``data`` into ``out``, uint8 ``[size, size, 3]``; ``random`` alone decides how.

        Raises:
            DecodeError: if ``data`` is not a picture or is damaged.
        """
        augment = self._augment
        crop = self._cropped(data, random)
        if augment.horizontal_flip and random.random() < augment.horizontal_flip:
            self._resize.mirrored(crop, out)
        else:
            self._resize(crop, out)
        if augment.rand_augment_ops:
            apply_rand_augment(self._rand_augment, out, random)
        if augment.random_erasing and random.random() < augment.random_erasing:
            random_erase(out, self._colour, random)

    def _cropped(self, data: bytes, random: np.random.Generator) -> Pixels:
        """A view of the decoder's buffer."""
        size = jpeg_size(data)
        if size is None or not self._augment.scaled_decode:
            pixels = self._decode.decode_sized(data, size)
            height, width, _ = pixels.shape
            top, left, rows, columns = random_crop(height, width, scale=self._augment.crop_scale, random=random)
        else:
            box = random_crop(*size, scale=self._augment.crop_scale, random=random)
            pixels = self._decode.decode_sized(data, size, _enough_for(box, size, self.size))
            top, left, rows, columns = _scaled_box(box, size, pixels.shape[:2])
        return pixels[top : top + rows, left : left + columns]


def normalize(pixels: torch.Tensor, preprocess: Preprocess, dtype: torch.dtype) -> torch.Tensor:
    """Uint8 ``[batch, height, width, 3]`` to normalised ``[batch, 3, height, width]`` on the same device."""
    mean, std = (torch.tensor(each, device=pixels.device).view(3, 1, 1) for each in (preprocess.mean, preprocess.std))
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.div_(255).sub_(mean).div_(std).to(dtype)


def shortest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter is ``size``; the longer is rounded down, as by torchvision's ``Resize``."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


class _Resize:
    """Antialiased resize of uint8 ``[height, width, 3]`` with a buffer of each thread's own."""

    def __init__(self, interpolation: str) -> None:
        # open_clip takes every other name (it knows "random") for bicubic.
        self._interpolation = interpolation if interpolation in _KERNELS else "bicubic"
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[_Resize], tuple[str]]:
        return _Resize, (self._interpolation,)

    def __call__(self, pixels: Pixels, out: Pixels) -> None:
        """Resize ``pixels``, which need not be contiguous, to the whole of ``out``."""
        height, width, _ = out.shape
        if pixels.shape == out.shape:
            out[...] = pixels
            return
        kernel = _KERNELS[self._interpolation]
        kernel(_channels_first(pixels), [height, width], False, None, None, out=_channels_first(out))

    def mirrored(self, pixels: Pixels, out: Pixels) -> None:
        """As a call, left and right exchanged. torch has a vectorised kernel for it; numpy takes 140 us longer."""
        resized = self.scratch(out.shape[0], out.shape[1])
        self(pixels, resized)
        torch.ops.aten.flip.out(_channels_first(resized), [3], out=_channels_first(out))

    def scratch(self, height: int, width: int) -> Pixels:
        """uint8 ``[height, width, 3]`` with any content, valid until this thread's next call."""
        num_bytes = 3 * height * width
        buffer: np.ndarray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._local.buffer = np.empty(num_bytes, np.uint8)
        return buffer[:num_bytes].reshape(height, width, 3)


def _channels_first(pixels: Pixels) -> torch.Tensor:
    """A view ``[1, 3, height, width]`` of the same memory, which torch takes for channels-last."""
    return torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)


def _open_clip_steps(preprocess: Preprocess) -> Sequence[Callable[[Image.Image], Image.Image]]:
    from wiseft_dist.models.without_wandb import open_clip

    cfg = open_clip.transform.PreprocessCfg(**asdict(preprocess))
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)
    steps: list[Callable[[Image.Image], Image.Image]] = transform.transforms
    return steps[:-2]  # all but ToTensor and Normalize


def _enough_for(box: Box, size: tuple[int, int], wanted: int) -> tuple[int, int]:
    """The smallest height and width of the whole picture at which the crop still has ``wanted`` pixels a side."""
    return math.ceil(wanted * size[0] / box[2]), math.ceil(wanted * size[1] / box[3])


def _scaled_box(box: Box, size: tuple[int, int], decoded: tuple[int, ...]) -> Box:
    """The crop in pixels of a picture that was shrunk from ``size`` to ``decoded`` while it was decoded."""
    down, right = decoded[0] / size[0], decoded[1] / size[1]
    rows, columns = max(1, round(box[2] * down)), max(1, round(box[3] * right))
    top, left = min(round(box[0] * down), decoded[0] - rows), min(round(box[1] * right), decoded[1] - columns)
    return top, left, rows, columns
