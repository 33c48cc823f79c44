from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wiseft_dist.config import AugmentConfig, FinetuneConfig
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.mixing import Mixing, make_mixing
from wiseft_dist.finetune.recipes import make_recipe

LABELS = torch.tensor([0, 1, 2, 3, 4, 4])
PLACE = {"step": 3, "rank": 1, "micro": 0}


def flat_images(size: int = 8) -> Tensor:
    """Picture i is the constant i, so that a mixed one tells what it was made of."""
    return torch.arange(6.0)[:, None, None, None].expand(6, 3, size, size).clone()


def mixing(mixup: float, cutmix: float, label_smoothing: float = 0.0, seed: int = 0) -> Mixing:
    made = make_mixing(
        AugmentConfig(mixup=mixup, cutmix=cutmix),
        num_classes=5,
        label_smoothing=label_smoothing,
        seed=seed,
    )
    assert made is not None
    return made


def shares(images: Tensor) -> Tensor:
    """Of each picture i mixed with picture 5 - i: how much is its own, [batch]."""
    own = torch.arange(6.0)
    return (images.mean(dim=(1, 2, 3)) - own.flip(0)) / (own - own.flip(0))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_hold_each_class_with_the_share_that_its_picture_has(mixup: float, cutmix: float) -> None:
    mix, found = mixing(mixup, cutmix), []
    for step in range(30):
        images, targets = mix(flat_images(32), LABELS, step=step, rank=0, micro=0)
        share = shares(images)
        expected = functional.one_hot(LABELS, 5) * share[:, None]
        expected = expected + functional.one_hot(LABELS.flip(0), 5) * (1 - share[:, None])
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-5)
        found.append(share[0].item())
    assert len(set(found)) > 20
    assert max(found) - min(found) > 0.5


def test_mixup_blends_every_pixel_and_cutmix_replaces_a_rectangle() -> None:
    blended, _ = mixing(1.0, 0.0)(flat_images(), LABELS, **PLACE)
    assert all(len(picture.unique()) == 1 for picture in blended)
    cut, _ = mixing(0.0, 1.0)(flat_images(16), LABELS, **PLACE)
    foreign = cut[1, 0] == 4
    assert set(cut[1].unique().tolist()) == {1.0, 4.0}
    rows, columns = foreign.nonzero(as_tuple=True)
    assert foreign.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


def test_with_both_each_batch_gets_one_of_them() -> None:
    mix = mixing(1.0, 1.0)
    kinds = [len(mix(flat_images(16), LABELS, step=step, rank=0, micro=0)[0][0].unique()) for step in range(100)]
    assert 30 < kinds.count(2) < 70


def test_a_batch_is_mixed_by_the_seed_and_its_place_alone() -> None:
    mix = mixing(0.8, 1.0)
    images, targets = mix(flat_images(), LABELS, **PLACE)
    mix(flat_images(), LABELS, step=9, rank=0, micro=2)
    np.random.rand(5)
    again_images, again_targets = mixing(0.8, 1.0)(flat_images(), LABELS, **PLACE)
    assert torch.equal(images, again_images)
    assert torch.equal(targets, again_targets)
    for change in ({"step": 4}, {"rank": 0}, {"micro": 1}):
        assert not torch.equal(targets, mix(flat_images(), LABELS, **(PLACE | change))[1])
    assert not torch.equal(targets, mixing(0.8, 1.0, seed=1)(flat_images(), LABELS, **PLACE)[1])


def test_the_random_numbers_of_numpy_are_left_where_they_were() -> None:
    before = np.random.get_state()
    mixing(0.8, 1.0)(flat_images(), LABELS, **PLACE)
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_low_precision_images_stay_so_and_their_targets_are_fp32() -> None:
    images, targets = mixing(0.8, 0.0)(flat_images().bfloat16(), LABELS, **PLACE)
    assert images.dtype == torch.bfloat16
    assert targets.dtype == torch.float32


def test_labels_are_smoothed_once() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    _, targets = mixing(0.8, 0.0, label_smoothing=0.1)(flat_images(), LABELS, **PLACE)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    _, hard = mixing(0.8, 0.0)(flat_images(), LABELS, **PLACE)
    torch.testing.assert_close(targets, 0.9 * hard + 0.1 / 5)
    recipe = make_recipe(FinetuneConfig(label_smoothing=0.1))
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(recipe.loss(lambda images: images, logits, targets), expected)
    unmixed = 0.9 * functional.one_hot(LABELS, 5) + 0.1 / 5
    torch.testing.assert_close(
        recipe.loss(lambda images: images, logits, LABELS), recipe.loss(lambda images: images, logits, unmixed)
    )


def test_no_mixing_is_none() -> None:
    assert make_mixing(AugmentConfig(), num_classes=5, label_smoothing=0.0, seed=0) is None


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0)])
def test_an_odd_batch_is_refused(augment: AugmentConfig) -> None:
    with pytest.raises(UserError, match="has 5 of them"):
        Mixing(augment, num_classes=5, label_smoothing=0.0, seed=0)(flat_images()[:5], LABELS[:5], **PLACE)


def test_on_a_gpu_a_batch_is_mixed_as_on_the_host() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    mix = mixing(0.8, 1.0)
    images, targets = mix(flat_images(), LABELS, **PLACE)
    on_device = mix(flat_images().cuda(), LABELS.cuda(), **PLACE)
    torch.testing.assert_close(on_device[0].cpu(), images)
    torch.testing.assert_close(on_device[1].cpu(), targets)
