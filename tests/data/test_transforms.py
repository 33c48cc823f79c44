from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from wiseft_dist.data.manifest import IMAGE_FIELDS, LABEL_FIELDS, index_shards
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.transforms import (
    Preprocess,
    decode,
    evaluation_transform,
    normalize,
    random_crop,
    training_transform,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHORTEST = Preprocess(32, MEAN, STD)
PREPROCESSES = [
    SHORTEST,
    Preprocess(32, MEAN, STD, interpolation="bilinear", resize_mode="squash"),
    Preprocess(32, MEAN, STD, resize_mode="longest", fill_color=7),
]


def encoded(mode: str, image_format: str, **options) -> bytes:
    """A smooth picture with some noise, so that neither decoder nor resize has an easy time."""
    rows, columns = np.mgrid[0:61, 0:83]
    noise = np.random.default_rng(0).integers(0, 40, (61, 83))
    channels = [(rows * 3 + noise) % 256, (columns * 2 + noise) % 256, (rows + columns + noise) % 256]
    image = Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray((columns * 3).astype(np.uint8)))
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


PICTURES = {
    "jpeg": encoded("RGB", "jpeg", quality=75),
    "jpeg 4:4:4": encoded("RGB", "jpeg", quality=95, subsampling=0),
    "jpeg progressive": encoded("RGB", "jpeg", progressive=True),
    "jpeg greyscale": encoded("L", "jpeg"),
    "jpeg CMYK": encoded("CMYK", "jpeg"),
    "png": encoded("RGB", "png"),
    "png palette": encoded("P", "png"),
    "png alpha": encoded("RGBA", "png"),
    "png greyscale alpha": encoded("LA", "png"),
    "webp": encoded("RGB", "webp"),
    "webp alpha": encoded("RGBA", "webp", lossless=True),
}


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=lambda preprocess: preprocess.resize_mode)
@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_evaluation_pixels_are_those_of_open_clip_on_a_picture_that_pillow_decoded(data, preprocess):
    settings = {"size": 32, "mean": MEAN, "std": STD, "mode": "RGB"}
    settings |= {name: getattr(preprocess, name) for name in ("interpolation", "resize_mode", "fill_color")}
    expected = image_transform_v2(PreprocessCfg(**settings), is_train=False)(Image.open(io.BytesIO(data)))
    pixels = evaluation_transform(preprocess)(decode(data))
    floats = normalize(torch.from_numpy(pixels.copy())[None], preprocess, torch.float32)[0]
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert torch.allclose(floats, expected, rtol=0, atol=1e-6)  # a step of one in 255 is 0.014


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_every_kind_of_picture_decodes_to_the_very_pixels_of_pillow(data):
    assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data))))


def test_a_truncated_jpeg_is_an_error_and_not_a_grey_half():
    with pytest.raises(OSError):
        decode(PICTURES["jpeg"][:800])


@pytest.mark.pictures
@pytest.mark.skipif("WISEFT_TEST_DATA" not in os.environ, reason="WISEFT_TEST_DATA does not say where pictures are")
def test_real_photographs_decode_to_the_very_pixels_of_pillow():
    folder = Path(os.environ["WISEFT_TEST_DATA"]) / "data" / "pacs" / "photo" / "test"
    (shard, *_) = index_shards(str(folder), target=LABEL_FIELDS).shards
    transform = evaluation_transform(Preprocess(224, MEAN, STD))
    num_jpegs = 0
    for sample in read_shard(shard, 0, 100):
        data = sample.first(IMAGE_FIELDS)
        num_jpegs += data[:2] == b"\xff\xd8"
        assert np.array_equal(transform(decode(data)), transform(Image.open(io.BytesIO(data)))), sample.key
    assert num_jpegs > 50


def test_normalize_gives_channels_first_in_the_dtype_asked_for():
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    floats = normalize(pixels, SHORTEST, torch.bfloat16)
    assert floats.shape == (2, 3, 5, 7)
    assert floats.dtype == torch.bfloat16
    expected = (pixels[1, 4, 6, 2] / 255 - MEAN[2]) / STD[2]
    assert floats[1, 2, 4, 6] == expected.to(torch.bfloat16)


@pytest.mark.parametrize("shape", [(61, 83), (1, 500), (500, 3), (1, 1), (40, 40)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.05, 0.2), (1.0, 1.0)])
def test_a_random_crop_stays_inside_the_picture(shape, scale):
    random = np.random.default_rng(0)
    for _ in range(200):
        top, left, height, width = random_crop(*shape, scale=scale, random=random)
        assert 0 <= top < top + height <= shape[0]
        assert 0 <= left < left + width <= shape[1]


def test_a_random_crop_keeps_the_share_of_the_area_and_the_aspect_it_was_asked_for():
    random = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        _, _, height, width = random_crop(300, 300, scale=(0.3, 0.5), random=random)
        shares.append(height * width / 300**2)
        assert 0.74 < width / height < 1.35
    assert 0.29 < min(shares) < 0.32
    assert 0.48 < max(shares) < 0.51


def test_a_training_crop_follows_the_random_numbers_alone():
    transform = training_transform(SHORTEST, (0.3, 0.6))
    image = decode(PICTURES["png alpha"])
    first, again, other = (transform(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_transforms_can_be_sent_to_another_process():
    image = decode(PICTURES["jpeg"])
    for transform, arguments in (
        (evaluation_transform(SHORTEST), lambda: ()),
        (training_transform(SHORTEST, (0.5, 1.0)), lambda: (np.random.default_rng(0),)),
    ):
        sent = pickle.loads(pickle.dumps(transform))
        assert np.array_equal(sent(image, *arguments()), transform(image, *arguments()))


def test_a_model_says_what_it_expects_of_its_images():
    config = {"size": [48, 48], "mean": MEAN, "std": list(STD), "interpolation": "bicubic", "resize_mode": "squash"}
    assert Preprocess.from_open_clip(config) == Preprocess(48, MEAN, STD, "bicubic", "squash")
