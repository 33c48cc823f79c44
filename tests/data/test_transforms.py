from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_pictures import PICTURES, by_pillow, encoded, labelled_pictures, needs_pictures, real_pictures, saved
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional

from wiseft_dist.config import AugmentConfig, ModelConfig
from wiseft_dist.data.augment import random_crop
from wiseft_dist.data.decode import DecodeError, decode
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, normalize, shortest_side, training_transform
from wiseft_dist.models.classifier import Classifier
from wiseft_dist.models.clip import create_clip
from wiseft_dist.models.zero_shot import zero_shot_head

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHORTEST = Preprocess(32, MEAN, STD)
PREPROCESSES = {
    "shortest": SHORTEST,
    "bilinear": Preprocess(32, MEAN, STD, interpolation="bilinear"),
    "random": Preprocess(32, MEAN, STD, interpolation="random"),
    "enlarged": Preprocess(96, MEAN, STD),
    "squash": Preprocess(32, MEAN, STD, interpolation="bilinear", resize_mode="squash"),
    "longest": Preprocess(32, MEAN, STD, resize_mode="longest", fill_color=7),
}
FAST = ("shortest", "bilinear", "enlarged")
DOMAIN_SIZES = {"photo": 492, "art_painting": 612, "cartoon": 719, "sketch": 1135}
DOMAINS = tuple(DOMAIN_SIZES)
each_preprocess = pytest.mark.parametrize("preprocess", PREPROCESSES.values(), ids=PREPROCESSES.keys())


def of_open_clip(preprocess: Preprocess, data: bytes) -> torch.Tensor:
    """open_clip's floats, normalised."""
    settings = {name: getattr(preprocess, name) for name in ("size", "interpolation", "resize_mode", "fill_color")}
    transform = image_transform_v2(PreprocessCfg(**settings, mean=MEAN, std=STD), is_train=False)
    return transform(by_pillow(data))


def uint8_of_open_clip(preprocess: Preprocess, data: bytes) -> np.ndarray:
    """open_clip's floats before ``Normalize``, which are levels / 255."""
    settings = {name: getattr(preprocess, name) for name in ("size", "interpolation", "resize_mode", "fill_color")}
    *steps, _ = image_transform_v2(PreprocessCfg(**settings), is_train=False).transforms
    image = by_pillow(data)
    for step in steps:
        image = step(image)
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def evaluated(preprocess: Preprocess, data: bytes, mode: str) -> np.ndarray:
    out = np.full((preprocess.size, preprocess.size, 3), 77, np.uint8)
    evaluation_transform(preprocess, mode)(data, out)
    return out


def trained(augment: AugmentConfig, data: bytes, seed: int = 0, preprocess: Preprocess = SHORTEST) -> np.ndarray:
    out = np.full((preprocess.size, preprocess.size, 3), 77, np.uint8)
    training_transform(preprocess, augment)(data, out, np.random.default_rng(seed))
    return out


@each_preprocess
@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_exact_evaluation_has_the_very_pixels_of_open_clip(data, preprocess):
    pixels = evaluated(preprocess, data, "exact")
    assert np.array_equal(pixels, uint8_of_open_clip(preprocess, data))
    floats = normalize(torch.from_numpy(pixels)[None], preprocess, torch.float32)[0]
    torch.testing.assert_close(floats, of_open_clip(preprocess, data), rtol=0, atol=1e-6)


@each_preprocess
@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_fast_evaluation_is_within_two_levels_of_open_clip(data, preprocess):
    difference = evaluated(preprocess, data, "fast").astype(int) - uint8_of_open_clip(preprocess, data)
    assert abs(difference).max() <= 2
    assert (difference != 0).mean() < 0.1  # these small pictures are hard; of photographs it is less than 0.01


@each_preprocess
def test_only_what_the_fast_way_cannot_do_goes_the_exact_way(preprocess):
    data = encoded("RGB", "jpeg", (331, 487))
    same = np.array_equal(evaluated(preprocess, data, "fast"), evaluated(preprocess, data, "exact"))
    fast = [PREPROCESSES[name] for name in FAST]
    assert same == (preprocess not in fast)


@each_preprocess
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_border_is_cut_off_before_anything_else(preprocess, mode):
    """As ObjectNet asks for: 2 pixels a side are red, and none of them may be resized into the picture."""
    picture = by_pillow(encoded("RGB", "png", (331, 487)))
    framed = Image.new("RGB", (491, 335), (255, 0, 0))
    framed.paste(picture, (2, 2))
    out = np.full((preprocess.size, preprocess.size, 3), 77, np.uint8)
    evaluation_transform(preprocess, mode, crop_border=2)(saved(framed, "png"), out)
    wanted = uint8_of_open_clip(preprocess, saved(framed.crop((2, 2, 489, 333)), "png"))
    assert abs(out.astype(int) - wanted).max() <= (2 if mode == "fast" else 0)
    assert np.array_equal(out, evaluated(preprocess, saved(picture, "png"), mode))
    assert not np.array_equal(out, evaluated(preprocess, saved(framed, "png"), mode))


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_picture_that_is_all_border_is_a_decode_error(mode):
    out = np.empty((32, 32, 3), np.uint8)
    evaluation_transform(SHORTEST, mode, crop_border=2)(encoded("RGB", "png", (5, 90)), out)
    with pytest.raises(DecodeError, match="90 x 4 pixels hold nothing but a border of 2"):
        evaluation_transform(SHORTEST, mode, crop_border=2)(encoded("RGB", "png", (4, 90)), out)


@pytest.mark.parametrize("shape", [(32, 32), (32, 90), (91, 32), (33, 40), (45, 32), (1, 7), (200, 31), (77, 77)])
def test_sides_and_crop_offsets_are_rounded_as_by_torchvision(shape):
    data = encoded("RGB", "png", shape)
    difference = evaluated(SHORTEST, data, "fast").astype(int) - uint8_of_open_clip(SHORTEST, data)
    assert abs(difference).max() <= 2


def test_the_longer_side_is_rounded_down():
    assert shortest_side(100, 149, 33) == (33, 49)
    assert shortest_side(149, 100, 33) == (49, 33)
    assert shortest_side(50, 50, 33) == (33, 33)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_is_that_of_torch_on_a_strided_crop_too(interpolation):
    data = encoded("RGB", "png", (150, 130))
    preprocess = Preprocess(32, MEAN, STD, interpolation=interpolation)
    top, left, rows, columns = random_crop(150, 130, scale=(0.4, 0.5), random=np.random.default_rng(5))
    crop = torch.from_numpy(decode(data)[top : top + rows, left : left + columns].copy()).permute(2, 0, 1)[None]
    expected = functional.interpolate(crop, (32, 32), mode=interpolation, antialias=True)[0].permute(1, 2, 0)
    augment = AugmentConfig(crop_scale=(0.4, 0.5))
    assert np.array_equal(trained(augment, data, 5, preprocess), expected.numpy())
    flipped = trained(augment.model_copy(update={"horizontal_flip": 1.0}), data, 5, preprocess)
    assert np.array_equal(flipped, expected.numpy()[:, ::-1])


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_damaged_picture_is_a_decode_error_in_evaluation_and_training(mode):
    data = PICTURES["jpeg"][:1200]
    with pytest.raises(DecodeError):
        evaluated(SHORTEST, data, mode)
    for scaled in (False, True):
        with pytest.raises(DecodeError):
            trained(AugmentConfig(scaled_decode=scaled), data)


def test_normalize_gives_channels_first_in_the_dtype_asked_for():
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    floats = normalize(pixels, SHORTEST, torch.bfloat16)
    assert floats.shape == (2, 3, 5, 7)
    assert floats.dtype == torch.bfloat16
    expected = (pixels[1, 4, 6, 2] / 255 - MEAN[2]) / STD[2]
    assert floats[1, 2, 4, 6] == expected.to(torch.bfloat16)


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop_scale=(0.3, 0.6)),
        AugmentConfig(crop_scale=(0.3, 0.6), scaled_decode=True),
        AugmentConfig(horizontal_flip=0.5, rand_augment_ops=2, random_erasing=0.5),
    ],
)
def test_a_training_picture_follows_the_random_numbers_alone(augment):
    data = encoded("RGB", "jpeg", (200, 300))
    first = trained(augment, data)
    torch.rand(3)
    np.random.rand(3)
    assert np.array_equal(first, trained(augment, data))
    assert not np.array_equal(first, trained(augment, data, seed=1))


def test_a_picture_is_mirrored_as_often_as_asked_for():
    data = encoded("RGB", "png", (40, 40))
    plain = trained(AugmentConfig(crop_scale=(1.0, 1.0)), data)
    transform = training_transform(SHORTEST, AugmentConfig(crop_scale=(1.0, 1.0), horizontal_flip=0.3))
    random, out, num_mirrored = np.random.default_rng(0), np.empty_like(plain), 0
    for _ in range(500):
        transform(data, out, random)
        # Crops differ in aspect, so that only their likeness says which way round they are.
        num_mirrored += np.abs(out - plain.astype(int)).sum() > np.abs(out[:, ::-1] - plain.astype(int)).sum()
    assert 110 < num_mirrored < 190


def test_a_scaled_decode_shows_the_same_crop():
    down, right = np.meshgrid(np.linspace(0, 255, 1200), np.linspace(0, 255, 1500), indexing="ij")
    data = saved(Image.fromarray(np.stack([down, right, 255 - down], -1).astype(np.uint8)), "jpeg", quality=95)
    augment = AugmentConfig(crop_scale=(0.5, 1.0))
    for seed in range(5):
        full = trained(augment, data, seed)
        scaled = trained(augment.model_copy(update={"scaled_decode": True}), data, seed)
        assert not np.array_equal(full, scaled)
        assert abs(full.astype(int) - scaled).max() <= 5  # a pixel is 8 levels of this gradient wide


def test_a_crop_that_is_small_already_is_not_decoded_smaller():
    data = encoded("RGB", "jpeg", (60, 70))
    augment = AugmentConfig(crop_scale=(0.5, 1.0))
    scaled = augment.model_copy(update={"scaled_decode": True})
    assert np.array_equal(trained(augment, data), trained(scaled, data))


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_every_kind_of_picture_can_be_trained_on(data):
    for scaled in (False, True):
        pixels = trained(AugmentConfig(scaled_decode=scaled), data)
        assert not (pixels == 77).all()


def test_transforms_can_be_sent_to_another_process():
    data = encoded("RGB", "jpeg", (300, 500))
    augment = AugmentConfig(horizontal_flip=1.0, rand_augment_ops=1, random_erasing=1.0)
    out, again = np.zeros((2, 32, 32, 3), np.uint8)
    for transform, arguments in (
        (evaluation_transform(SHORTEST), lambda: ()),
        (evaluation_transform(SHORTEST, "exact"), lambda: ()),
        (training_transform(SHORTEST, augment), lambda: (np.random.default_rng(0),)),
    ):
        transform(data, out, *arguments())
        sent = pickle.dumps(transform)
        assert len(sent) < 20_000  # no buffer
        pickle.loads(sent)(data, again, *arguments())
        assert np.array_equal(out, again)
        assert transform.size == 32


def test_a_model_says_what_it_expects_of_its_images():
    config = {"size": [48, 48], "mean": MEAN, "std": list(STD), "interpolation": "bicubic", "resize_mode": "squash"}
    assert Preprocess.from_open_clip(config) == Preprocess(48, MEAN, STD, "bicubic", "squash")


class TestRealPictures:
    pytestmark = needs_pictures

    @pytest.mark.parametrize("folder", ["photographs", "pacs/photo/test"])
    def test_exact_evaluation_has_the_pixels_of_open_clip_and_fast_almost_all_of_them(self, folder):
        preprocess, shares = Preprocess(224, MEAN, STD), []
        for data in list(real_pictures(folder))[::3]:
            expected = uint8_of_open_clip(preprocess, data)
            assert np.array_equal(evaluated(preprocess, data, "exact"), expected)
            difference = evaluated(preprocess, data, "fast").astype(int) - expected
            assert abs(difference).max() <= 3
            shares.append((difference != 0).mean())
        assert np.mean(shares) < 0.01

    @pytest.mark.slow
    @pytest.mark.parametrize("domains", [DOMAINS[:1], pytest.param(DOMAINS, marks=pytest.mark.matrix)], ids=len)
    def test_fast_evaluation_moves_no_accuracy_by_more_than_a_tenth_of_a_point(self, domains):
        root = Path(os.environ["WISEFT_TEST_DATA"])
        classifier, preprocess = pacs_classifier(root)
        num_pictures = num_moved = 0
        for domain in domains:
            pictures = list(labelled_pictures(f"pacs/{domain}/test"))
            labels = torch.tensor([label for _, label in pictures])
            exact, fast = (predictions(classifier, preprocess, pictures, mode) for mode in ("exact", "fast"))
            right = [100 * (found == labels).double().mean().item() for found in (exact, fast)]
            flipped = (exact != fast).nonzero().flatten().tolist()
            print(f"{domain}: {len(pictures)} pictures, exact {right[0]:.3f} %, fast {right[1]:.3f} %, {flipped=}")
            assert abs(right[0] - right[1]) <= 0.1, domain
            num_pictures += len(pictures)
            num_moved += int((fast == labels).sum()) - int((exact == labels).sum())
        print(f"all: {num_pictures} pictures, fast has {num_moved:+d} right")
        assert num_pictures == sum(DOMAIN_SIZES[domain] for domain in domains)
        assert abs(num_moved) / num_pictures <= 0.001


def pacs_classifier(root: Path) -> tuple[Classifier, Preprocess]:
    clip = create_clip(ModelConfig(architecture=str(root / "models" / "pacs-clip")))
    folder = root / "data" / "pacs" / "photo"
    classnames = (folder / "classnames.txt").read_text().splitlines()
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    head = zero_shot_head(clip, classnames, templates, device=torch.device("cpu"))
    return Classifier(clip.model.visual, head).eval(), clip.preprocess


@torch.inference_mode()
def predictions(classifier: Classifier, preprocess: Preprocess, pictures: list, mode: str) -> torch.Tensor:
    transform = evaluation_transform(preprocess, mode)
    pixels = np.empty((len(pictures), preprocess.size, preprocess.size, 3), np.uint8)
    for (data, _), out in zip(pictures, pixels, strict=True):
        transform(data, out)
    batches = torch.from_numpy(pixels).split(256)
    return torch.cat([classifier(normalize(batch, preprocess, torch.float32)).argmax(-1) for batch in batches])
