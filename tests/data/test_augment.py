from __future__ import annotations

import numpy as np
import pytest
import torch
from encoded_pictures import encoded
from PIL import Image
from torchvision.transforms import RandAugment

from wiseft_dist.config import AugmentConfig
from wiseft_dist.data.augment import apply_rand_augment, rand_augment, random_crop, random_erase
from wiseft_dist.data.decode import decode
from wiseft_dist.data.transforms import Preprocess, training_transform

COLOUR = np.array([120, 110, 100], np.uint8)


@pytest.fixture
def pixels() -> np.ndarray:
    return decode(encoded("RGB", "png", (64, 64)))


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
    crops = np.array([random_crop(300, 300, scale=(0.3, 0.5), random=random) for _ in range(1000)])
    shares, aspects = crops[:, 2] * crops[:, 3] / 300**2, crops[:, 3] / crops[:, 2]
    assert 0.29 < shares.min() < 0.31
    assert 0.49 < shares.max() < 0.51
    assert 0.74 < aspects.min() < 0.77
    assert 1.30 < aspects.max() < 1.35
    assert abs(np.log(aspects).mean()) < 0.02


def test_a_random_crop_reaches_every_edge():
    random = np.random.default_rng(0)
    crops = np.array([random_crop(20, 20, scale=(0.5, 0.6), random=random) for _ in range(1000)])
    assert (crops[:, :2].min(axis=0) == 0).all()
    assert ((crops[:, :2] + crops[:, 2:]).max(axis=0) == 20).all()


def test_erasing_paints_one_rectangle_of_the_shares_and_aspects_of_torchvision(pixels):
    shares, aspects = [], []
    for seed in range(300):
        erased = np.zeros_like(pixels)
        random_erase(erased, COLOUR, np.random.default_rng(seed))
        rows, columns = np.nonzero(erased[..., 0])
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        assert (erased[rows, columns] == COLOUR).all()
        shares.append(len(rows) / 64**2)
        aspects.append(height / width)
    assert 0.015 < min(shares) < 0.04
    assert 0.28 < max(shares) < 0.34
    assert 0.25 < min(aspects) < 0.4
    assert 2.8 < max(aspects) < 3.6


def test_erasing_leaves_a_picture_alone_into_which_no_rectangle_fits():
    pixel = np.zeros((1, 1, 3), np.uint8)
    random_erase(pixel, COLOUR, np.random.default_rng(0))
    assert (pixel == 0).all()


def test_pictures_are_erased_as_often_as_asked_for_and_in_the_mean_colour():
    preprocess = Preprocess(32, (1.0, 0.5, 0.0), (1.0, 1.0, 1.0))
    transform = training_transform(preprocess, AugmentConfig(random_erasing=0.25))
    data, random, out = encoded("L", "png", (32, 32)), np.random.default_rng(0), np.zeros((32, 32, 3), np.uint8)
    num_erased = 0
    for _ in range(400):
        transform(data, out, random)
        num_erased += (out == (255, 128, 0)).all(axis=-1).any()
    assert 75 < num_erased < 125


def test_rand_augment_is_that_of_torchvision_under_the_seed_drawn(pixels):
    for seed in range(20):
        augmented = pixels.copy()
        augment = rand_augment(ops=2, magnitude=9, fill=COLOUR)
        apply_rand_augment(augment, augmented, np.random.default_rng(seed))
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        expected = RandAugment(2, 9, fill=[120.0, 110.0, 100.0])(Image.fromarray(pixels))
        assert np.array_equal(augmented, np.asarray(expected))


def test_rand_augment_at_a_higher_magnitude_changes_more(pixels):
    changes = []
    for magnitude in (3, 15, 30):
        augment, change = rand_augment(ops=2, magnitude=magnitude, fill=COLOUR), 0.0
        for seed in range(60):
            augmented = pixels.copy()
            apply_rand_augment(augment, augmented, np.random.default_rng(seed))
            change += abs(augmented.astype(int) - pixels).mean()
        changes.append(change)
    assert changes == sorted(changes)
    assert changes[0] * 1.2 < changes[2]


def test_rand_augment_leaves_the_random_numbers_of_torch_and_numpy_where_they_were(pixels):
    augment = rand_augment(ops=2, magnitude=9, fill=COLOUR)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    apply_rand_augment(augment, pixels, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_an_augmentation_that_fails_leaves_the_random_numbers_of_torch_where_they_were():
    state = torch.get_rng_state()
    with pytest.raises(TypeError):
        apply_rand_augment(rand_augment(ops=1, magnitude=9, fill=COLOUR), np.zeros((2, 2, 7)), np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_drawn_for_what_is_not_asked_for():
    data, out = encoded("RGB", "png", (40, 40)), np.zeros((32, 32, 3), np.uint8)
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
    random, other = np.random.default_rng(3), np.random.default_rng(3)
    training_transform(preprocess, AugmentConfig(crop_scale=(0.3, 0.4)))(data, out, random)
    random_crop(40, 40, scale=(0.3, 0.4), random=other)
    assert random.random() == other.random()
