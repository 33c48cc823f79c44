"""TIES: trimming over the whole model, exactly; elected signs; the mean of what agrees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import learn, merged, mixed, several
from real_checkpoints import same_bits
from torch import Tensor

from wiseft_dist.merge.methods import method as interface
from wiseft_dist.merge.methods.ties import Ties


def reference(models: list[dict[str, Tensor]], density: float) -> dict[str, np.ndarray]:
    """Algorithm 1 on concatenated task vectors."""
    flat = [np.concatenate([model[name].numpy().reshape(-1) for name in model]) for model in models]
    trimmed = []
    for model in flat[1:]:
        vector = model - flat[0]
        kept = max(1, round(density * vector.size))
        smallest = np.sort(np.abs(vector))[vector.size - kept]
        trimmed.append(np.where(np.abs(vector) >= smallest, vector, 0).astype(np.float64))
    elected = np.sign(sum(trimmed))
    agreeing = [np.where((np.sign(vector) == elected) & (elected != 0), vector, 0) for vector in trimmed]
    merged_vector = sum(agreeing) / np.maximum(1, sum((vector != 0).astype(int) for vector in agreeing))
    found, start = {}, 0
    for name, value in models[0].items():
        found[name] = flat[0][start : start + value.numel()] + merged_vector[start : start + value.numel()]
        start += value.numel()
    return found


@settings(max_examples=40, deadline=None)
@given(density=st.floats(0.001, 1), seed=st.integers(0, 50), count=st.integers(1, 4))
def test_ties_is_the_papers_algorithm_on_the_whole_task_vector(density, seed, count):
    models = several(count, seed)
    wanted, found = reference(models, density), merged(Ties(density), models, 1.0)
    for name, value in found.items():
        assert np.array_equal(value.numpy().reshape(-1), wanted[name].astype(np.float32)), name


def test_conflicting_signs():
    """After trimming to 3 of 5: a majority by weight elects, the others do not count, and what cancels is left out."""
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])}
    moves = ([4.0, 2.0, -3.0, 0.5, 0.0], [2.0, -2.0, 1.0, 0.0, 0.5], [-3.0, 0.25, -1.0, 2.0, 0.0])
    models = [base, *({"w": base["w"] + torch.tensor(move)} for move in moves)]
    found = merged(Ties(0.6), models, 1.0)["w"] - 1
    # elected: +3 of (4, 2, -3): mean of 4 and 2; 0 of (2, -2, trimmed); -3 of (-3, 1, -1); 2 of (2) alone; none
    assert found.tolist() == [3.0, 0.0, -2.0, 2.0, 0.0]


def test_alpha_scales_the_merged_task_vector():
    models = several(3)
    method = learn(Ties(0.4), models)
    whole, half = mixed(method, models, 1.0), mixed(method, models, 0.5)
    for name, value in models[0].items():
        torch.testing.assert_close(half[name], value + (whole[name] - value) / 2, rtol=1e-6, atol=1e-7)


def test_trimming_is_over_the_model_not_over_each_tensor():
    base = {"large": torch.zeros(4), "small": torch.zeros(4)}
    other = {"large": torch.tensor([1.0, 2.0, 3.0, 4.0]), "small": torch.full((4,), 0.1)}
    found = merged(Ties(0.5), [base, other], 1.0)
    assert found["large"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert same_bits(found["small"], base["small"])


def test_equals_of_the_smallest_element_kept_are_kept():
    base, other = {"w": torch.zeros(5)}, {"w": torch.tensor([1.0, -1.0, 1.0, 2.0, 0.5])}
    assert merged(Ties(0.4), [base, other], 1.0)["w"].tolist() == [1.0, -1.0, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("num_changed", [0, 1, 3])
def test_fewer_changes_than_are_kept_are_all_kept(num_changed):
    base, other = {"w": torch.zeros(10)}, {"w": torch.zeros(10)}
    other["w"][:num_changed] = torch.tensor([1e-42, 3.0, -2.0])[:num_changed]
    assert same_bits(merged(Ties(0.8), [base, other], 1.0)["w"], other["w"])


@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.integers(0, 0x7F7FFFFF), min_size=1, max_size=60),
    density=st.floats(0.001, 1),
    block=st.integers(1, 20),
)
def test_the_threshold_is_the_exact_kth_largest_magnitude_of_any_floats(bits, density, block):
    values = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    values = values * torch.tensor([1.0, -1.0]).repeat(30)[: len(bits)]
    method, usual = Ties(density), interface.BLOCK_ELEMENTS
    interface.BLOCK_ELEMENTS = block
    try:
        learn(method, [{"w": torch.zeros(len(bits))}, {"w": values}])
    finally:
        interface.BLOCK_ELEMENTS = usual
    kept = max(1, round(density * len(bits)))
    assert method.describe()["thresholds"] == [values.abs().sort(descending=True).values[kept - 1].item()]


def test_a_fifth_is_kept_by_default():
    assert learn(Ties(), several(1)).describe()["density"] == 0.2
