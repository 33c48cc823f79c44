"""DARE: what is dropped is a function of seed, model, tensor and place; on average nothing is lost."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from merging import merged, several, zero_shot
from real_checkpoints import same_bits

from wiseft_dist.merge.methods.dare import Dare
from wiseft_dist.merge.methods.method import Slices

NAME, OTHER = "visual.transformer.resblocks.3.mlp.c_fc.weight", "visual.proj"
COUNT = 30_000


def kept(density: float, *, seed: int = 0, model: int = 1, name: str = NAME, start: int = 0, count: int = COUNT):
    """Which elements of a task vector stay, bool ``[count]``."""
    base = torch.zeros(count)
    models = [base, *([base] * (model - 1)), torch.ones(count)]
    out = torch.empty(count)
    Dare(density, seed).mix(Slices(name, start, models), 1.0, out)
    assert ((out == 0) | (out == torch.tensor(1.0 / density))).all()
    return out != 0


def split_mix(seed: int, model: int, name: str, count: int) -> np.ndarray:
    """The published generator in plain Python integers, seeded by what names the stream."""
    stream = int.from_bytes(hashlib.blake2b(f"{seed}/{model}/{name}".encode(), digest_size=8).digest(), "little")
    numbers = []
    for place in range(count):
        z = (stream + place * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        numbers.append(z ^ (z >> 31))
    return np.array(numbers, dtype=np.uint64)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_an_element_stays_where_its_random_number_is_below_the_density(density):
    numbers = split_mix(7, 2, NAME, 3000) / 2.0**64
    assert kept(density, seed=7, model=2, count=3000).tolist() == (numbers < density).tolist()


def test_dare_is_task_arithmetic_on_rescaled_remains():
    models, density = several(2), 0.4
    found = merged(Dare(density, seed=5), models, 0.6)
    for name, value in models[0].items():
        wanted = value.double().reshape(-1)
        for index, model in enumerate(models[1:], start=1):
            stays = torch.from_numpy(split_mix(5, index, name, value.numel()) / 2.0**64 < density)
            wanted += 0.6 * stays * (model[name].double().reshape(-1) - value.double().reshape(-1)) / density
        torch.testing.assert_close(found[name].double().reshape(-1), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_share_that_stays_is_the_density(density):
    for seed in range(5):
        share = kept(density, seed=seed).double().mean().item()
        assert abs(share - density) < 5 * (density * (1 - density) / COUNT) ** 0.5


def test_nothing_is_lost_on_average():
    base, other = several(1, shapes={NAME: (50,)})
    found = torch.stack([merged(Dare(0.5, seed), [base, other], 1.0)[NAME] for seed in range(2000)]).double()
    error = (found.mean(dim=0) - other[NAME].double()).abs()
    assert (error <= 5 * (other[NAME] - base[NAME]).abs() / 2000**0.5 + 1e-6).all()


def test_other_seeds_models_and_tensors_drop_independently():
    streams = [kept(0.5), kept(0.5, seed=1), kept(0.5, model=2), kept(0.5, name=OTHER), kept(0.5, seed=2**32 - 1)]
    for index, first in enumerate(streams):
        for second in streams[:index]:
            assert abs((first == second).double().mean().item() - 0.5) < 5 * 0.5 / COUNT**0.5


def test_neighbours_are_independent():
    stays = kept(0.5)
    for lag in (1, 2, 64, 4096):
        assert abs((stays[lag:] == stays[:-lag]).double().mean().item() - 0.5) < 5 * 0.5 / (COUNT - 4096) ** 0.5


def test_the_same_seed_drops_the_same_again_wherever_a_slice_begins():
    whole = kept(0.3)
    assert torch.equal(whole, kept(0.3))
    assert torch.equal(whole[777:1777], kept(0.3, start=777, count=1000))


def test_places_beyond_32_bits_are_places_of_their_own():
    start = 5 * 2**32 + 3
    far = kept(0.5, start=start, count=5000)
    assert not torch.equal(far, kept(0.5, start=start % 2**32, count=5000))
    assert torch.equal(far[100:], kept(0.5, start=start + 100, count=4900))


def test_density_one_is_task_arithmetic_without_drops():
    assert kept(1.0).all()


def test_a_tenth_stays_by_default():
    base = zero_shot(shapes={"w": (20_000,)})
    found = merged(Dare(), [base, {"w": base["w"] + 1}], 1.0)["w"]
    assert 0.08 < (found != base["w"]).double().mean() < 0.12
    assert not same_bits(found, base["w"])
