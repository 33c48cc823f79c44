"""Encoded pictures to uint8 RGB: what ``PIL.Image.open(data).convert("RGB")`` gives, faster where it is a JPEG.

As in open_clip's WebDataset pipeline (``pilrgb``) transparency is dropped and the EXIF orientation is not looked at.
"""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

Pixels = np.ndarray
"""uint8 ``[height, width, 3]``, red first."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow may take a picture for. Not among them: formats that it hands to other programs, such as EPS."""

KEPT_BYTES = 128 * 2**20
"""A decoder keeps no larger buffer than this between pictures."""

MIN_SCALE = 2.0
"""Shrinking by less than this while decoding costs more than it saves (5/8 was slower than 1/1, 1/2 faster)."""


class DecodeError(ValueError):
    """These bytes are no picture, or a damaged one. The message is a short reason, without the name of the sample."""


def decode(data: bytes) -> Pixels:
    """Decode a picture.

    Args:
        data: The bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file.

    Returns:
        Its pixels as RGB, uint8 ``[height, width, 3]``, in an array of its own.

    Raises:
        DecodeError: if Pillow cannot read it either.
    """
    size = jpeg_size(data)
    pixels = None if size is None else _decode_jpeg(data)
    return np.array(pillow_image(data)) if pixels is None else pixels


class Decoder:
    """Decodes into a buffer that it keeps: fresh memory costs a page fault every 4 KiB.

    Each thread has a buffer of its own; a copy sent to another process starts without one.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[Decoder], tuple[()]]:
        return Decoder, ()

    def __call__(self, data: bytes) -> Pixels:
        """As :func:`decode`, but the result is valid only until this thread's next call."""
        size = jpeg_size(data)
        return self.decode_sized(data, size)

    def decode_sized(self, data: bytes, size: tuple[int, int] | None, min_size: tuple[int, int] = (0, 0)) -> Pixels:
        """Decode a picture whose header was read, if wanted at a fraction of its size.

        Args:
            data: The encoded picture.
            size: What :func:`jpeg_size` said of it.
            min_size: Height and width in pixels below which a JPEG must not be shrunk. (0, 0): not shrunk at all.

        Returns:
            uint8 ``[height, width, 3]``, valid only until this thread's next call.

        Raises:
            DecodeError: as :func:`decode`.
        """
        if size is None:
            return np.array(pillow_image(data))
        num_bytes = 3 * size[0] * size[1]
        pixels = _decode_jpeg(data, min_size, self._buffer(num_bytes) if num_bytes <= KEPT_BYTES else None)
        return np.array(pillow_image(data)) if pixels is None else pixels

    def _buffer(self, num_bytes: int) -> np.ndarray:
        buffer: np.ndarray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            # Grown by half as much again: pictures of rising size would otherwise each bring fresh memory.
            buffer = self._local.buffer = np.empty(min(KEPT_BYTES, num_bytes * 3 // 2), np.uint8)
        return buffer


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in pixels of a JPEG that simplejpeg can decode to RGB; None for every other picture.

    Raises:
        DecodeError: if the header promises more pixels than Pillow would decode.
    """
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError, RuntimeError):
        return None
    if colorspace in ("CMYK", "YCCK"):
        return None
    if Image.MAX_IMAGE_PIXELS is not None and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise DecodeError(f"{width}x{height} pixels are more than the {2 * Image.MAX_IMAGE_PIXELS} that are decoded")
    return height, width


def pillow_image(data: bytes) -> Image.Image:
    """Decode with Pillow alone, to an image of mode RGB.

    Raises:
        DecodeError: with Pillow's reason.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError:
        start = data[:8].hex(" ")
        raise DecodeError(f"{len(data)} bytes that begin with [{start}] are no picture that Pillow knows") from None
    except Exception as error:  # damaged files make Pillow's readers raise whatever their parsing runs into
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _decode_jpeg(data: bytes, min_size: tuple[int, int] = (0, 0), buffer: np.ndarray | None = None) -> Pixels | None:
    """Pixels, or None where libjpeg has something to say against the file: Pillow then decides."""
    scaled: dict[str, Any] = {}
    if min_size > (0, 0):
        scaled = {"min_height": min_size[0], "min_width": min_size[1], "min_factor": MIN_SCALE}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer, **scaled)
    except (ValueError, KeyError, RuntimeError):
        return None
    return pixels
