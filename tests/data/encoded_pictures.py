"""Pictures of every kind that shards hold: made here, and real ones."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

needs_pictures = [
    pytest.mark.pictures,
    pytest.mark.skipif("WISEFT_TEST_DATA" not in os.environ, reason="WISEFT_TEST_DATA does not say where pictures are"),
]


def encoded(mode: str, image_format: str, shape: tuple[int, int] = (61, 83), **options) -> bytes:
    """A smooth picture with some noise, so that neither decoder nor resize has an easy time."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    noise = np.random.default_rng(0).integers(0, 40, shape)
    channels = [(rows * 3 + noise) % 256, (columns * 2 + noise) % 256, (rows + columns + noise) % 256]
    image = Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray((columns * 3 % 256).astype(np.uint8)))
    return saved(image, image_format, **options)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def sixteen_bit() -> bytes:
    return saved(Image.fromarray((np.arange(40 * 50).reshape(40, 50) * 32).astype(np.uint16)), "png")


def turned() -> bytes:
    """A JPEG whose EXIF tag asks for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("RGB", "jpeg", exif=exif)


def scratched() -> bytes:
    """A JPEG with a marker in its scan that does not belong there, of which libjpeg makes something."""
    data = bytearray(encoded("RGB", "jpeg", quality=90))
    middle = len(data) * 3 // 4
    data[middle : middle + 2] = b"\xff\xd3"
    return bytes(data)


JPEGS = {
    "jpeg": encoded("RGB", "jpeg", quality=75),
    "jpeg 4:4:4": encoded("RGB", "jpeg", quality=95, subsampling="4:4:4"),
    "jpeg 4:2:2": encoded("RGB", "jpeg", quality=80, subsampling="4:2:2"),
    "jpeg progressive": encoded("RGB", "jpeg", progressive=True),
    "jpeg without transform": encoded("RGB", "jpeg", keep_rgb=True),
    "jpeg greyscale": encoded("L", "jpeg"),
    "jpeg of a turned camera": turned(),
    "jpeg of one pixel": encoded("RGB", "jpeg", (1, 1)),
}
OTHERS = {
    "jpeg CMYK": encoded("CMYK", "jpeg"),
    "jpeg scratched": scratched(),
    "png": encoded("RGB", "png"),
    "png palette": encoded("P", "png"),
    "png palette with transparency": encoded("P", "png", transparency=3),
    "png alpha": encoded("RGBA", "png"),
    "png greyscale alpha": encoded("LA", "png"),
    "png black and white": encoded("1", "png"),
    "png 16 bit": sixteen_bit(),
    "webp": encoded("RGB", "webp"),
    "webp alpha": encoded("RGBA", "webp", lossless=True),
}
PICTURES = JPEGS | OTHERS


def by_pillow(data: bytes) -> Image.Image:
    """What ``pilrgb`` of webdataset makes of a picture."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def real_pictures(folder: str) -> Iterator[bytes]:
    """Every ``.jpg`` of the shards in a folder of WISEFT_TEST_DATA/data, in their order."""
    for data, _ in labelled_pictures(folder):
        yield data


def labelled_pictures(folder: str) -> Iterator[tuple[bytes, int]]:
    shards = Path(os.environ["WISEFT_TEST_DATA"], "data", folder).glob("*.tar")
    for shard in sorted(shards, key=lambda path: int(path.stem)):
        with tarfile.open(shard) as archive:
            contents = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
        for name in sorted(contents):
            if name.endswith(".jpg"):
                yield contents[name], int(contents[name.removesuffix(".jpg") + ".cls"])
