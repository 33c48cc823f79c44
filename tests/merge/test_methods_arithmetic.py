"""Each method against its paper's formula, written down plainly in fp64, and at its published special cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import information, learn, merged, several, zero_shot
from real_checkpoints import same_bits
from torch import Tensor

from wiseft_dist.errors import UserError
from wiseft_dist.merge.methods.fisher import Fisher
from wiseft_dist.merge.methods.method import BLOCK_ELEMENTS
from wiseft_dist.merge.methods.model_stock import ModelStock
from wiseft_dist.merge.methods.slerp import Slerp
from wiseft_dist.merge.methods.task_arithmetic import TaskArithmetic
from wiseft_dist.merge.methods.uniform_soup import UniformSoup
from wiseft_dist.merge.methods.wise import Wise

ALPHAS = [0.001, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0]
alphas = st.floats(0.001, 1)
seeds = st.integers(0, 50)


def fp64(model: dict[str, Tensor], name: str) -> np.ndarray:
    return model[name].double().numpy().reshape(-1)


def check(found: dict[str, Tensor], models: list[dict[str, Tensor]], reference, *, amplified: float = 1.0) -> None:
    """Every tensor is the reference's to a few roundings of fp32 of the numbers that went into an element."""
    for name in models[0]:
        values = [fp64(model, name) for model in models]
        wanted, scale = reference(name, *values), np.abs(values).sum(axis=0)
        error = np.abs(found[name].double().numpy().reshape(-1) - wanted)
        assert (error <= 3 * np.finfo(np.float32).eps * amplified * scale).all(), name


@settings(max_examples=30, deadline=None)
@given(alpha=alphas, seed=seeds)
def test_wise_is_the_straight_line(alpha, seed):
    models = several(1, seed)
    check(merged(Wise(), models, alpha), models, lambda _, first, second: (1 - alpha) * first + alpha * second)


@settings(max_examples=30, deadline=None)
@given(alpha=alphas, seed=seeds, count=st.integers(1, 5))
def test_a_uniform_soup_is_the_mean(alpha, seed, count):
    models = several(count, seed)
    check(
        merged(UniformSoup(), models, alpha),
        models,
        lambda _, first, *others: first + alpha * (np.mean(others, axis=0) - first),
    )


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
def test_a_soup_of_one_model_is_wise_to_the_bit(alpha):
    models = several(1)
    soup, wise = merged(UniformSoup(), models, alpha), merged(Wise(), models, alpha)
    assert all(same_bits(soup[name], wise[name]) for name in wise)


def test_the_mean_of_a_soup_is_added_up_in_more_than_fp32():
    models = [{"w": torch.tensor([value])} for value in (0.0, 1.0, *[2.0**-25] * 8)]
    assert merged(UniformSoup(), models, 1.0)["w"].item() == pytest.approx((1 + 8 * 2.0**-25) / 9, rel=6e-8)


@settings(max_examples=30, deadline=None)
@given(alpha=alphas, seed=seeds, count=st.integers(1, 5))
def test_task_arithmetic_adds_what_each_fine_tuning_changed(alpha, seed, count):
    models = several(count, seed)
    check(
        merged(TaskArithmetic(), models, alpha),
        models,
        lambda _, first, *others: first + alpha * sum(other - first for other in others),
    )


def test_opposite_task_vectors_cancel():
    base, move = torch.tensor([1.0, -0.0, 3.0]), torch.tensor([0.5, 0.25, 0.0])
    found = merged(TaskArithmetic(), [{"w": base}, {"w": base + move}, {"w": base - move}], 0.7)["w"]
    assert same_bits(found, base)


def slerp_reference(first: np.ndarray, second: np.ndarray, alpha: float) -> np.ndarray:
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-4 or cosine < -0.9995:
        return (1 - alpha) * first + alpha * second
    return (np.sin((1 - alpha) * angle) * first + np.sin(alpha * angle) * second) / np.sin(angle)


@settings(max_examples=30, deadline=None)
@given(alpha=alphas, seed=seeds, turned=st.booleans())
def test_slerp_is_the_great_circle(alpha, seed, turned):
    models = [zero_shot(seed), zero_shot(seed + 100)] if turned else several(1, seed)
    found = merged(Slerp(), models, alpha)
    largest_weight = 1 / math.sqrt(1 - 0.9995**2)
    check(found, models, lambda _, *pair: slerp_reference(*pair, alpha), amplified=largest_weight if turned else 1.0)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_slerp_between_unit_vectors_stays_on_the_sphere_and_turns_evenly(alpha):
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(2.0), math.sin(2.0)])
    found = merged(Slerp(), [{"w": first}, {"w": second}], alpha)["w"]
    torch.testing.assert_close(found, torch.tensor([math.cos(2 * alpha), math.sin(2 * alpha)]))


def test_slerp_of_vectors_without_an_arc_is_the_straight_line():
    base = torch.tensor([1.0, 2.0, -3.0])
    for other in (base * 1.5, -base, torch.zeros(3), base * (1 + 2.0**-20)):
        for models in ([{"w": base}, {"w": other}], [{"w": other}, {"w": base}]):
            found, line = merged(Slerp(), models, 0.3)["w"], merged(Wise(), models, 0.3)["w"]
            assert same_bits(found, line)


def test_slerp_goes_over_into_the_straight_line_without_a_step():
    base, across = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for angle in (2e-4, 2.4e-4, 2.5e-4, 3e-4):
        models = [{"w": base}, {"w": base * math.cos(angle) + across * math.sin(angle)}]
        found = merged(Slerp(), models, 0.5)["w"]
        torch.testing.assert_close(found, merged(Wise(), models, 0.5)["w"], rtol=1.2e-7, atol=0)


def test_slerp_turns_each_tensor_by_its_own_angle():
    models = [
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 0.0])},
        {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.8, 0.6])},
    ]
    angles = learn(Slerp(), models).describe()["angles"]
    assert angles == pytest.approx({"a": math.pi / 2, "b": math.acos(0.8)}, abs=1e-7)


def stock_ratio(vectors: list[np.ndarray]) -> float:
    cosines = [
        first @ second / (np.linalg.norm(first) * np.linalg.norm(second)) if first.any() and second.any() else 0.0
        for index, first in enumerate(vectors)
        for second in vectors[:index]
    ]
    count, cosine = len(vectors), max(0.0, float(np.mean(cosines)))
    return count * cosine / (1 + (count - 1) * cosine)


@settings(max_examples=30, deadline=None)
@given(alpha=alphas, seed=seeds, count=st.integers(2, 5))
def test_model_stock_stops_where_the_angles_say(alpha, seed, count):
    models = several(count, seed)
    common = several(1, seed + 77)
    models[1:] = [
        {name: value + common[1][name] - common[0][name] for name, value in model.items()} for model in models[1:]
    ]

    def reference(_, first, *others):
        ratio = stock_ratio([other - first for other in others])
        return first + alpha * ratio * (np.mean(others, axis=0) - first)

    found = merged(ModelStock(), models, alpha)
    check(found, models, reference)
    assert not same_bits(found["visual.conv1.weight"], models[0]["visual.conv1.weight"])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock_of_orthogonal_task_vectors_is_theta_0_and_of_parallel_ones_the_mean(count):
    base = torch.arange(5.0)
    orthogonal = [{"w": base}, *({"w": base + row} for row in torch.eye(5)[:count])]
    assert same_bits(merged(ModelStock(), orthogonal, 1.0)["w"], base)
    opposed = [{"w": base}, {"w": base + torch.eye(5)[0]}, {"w": base - torch.eye(5)[0]}]
    assert same_bits(merged(ModelStock(), opposed, 1.0)["w"], base)
    parallel = [{"w": base}, *({"w": base + (1 + index) * torch.eye(5)[0]} for index in range(count))]
    assert same_bits(merged(ModelStock(), parallel, 1.0)["w"], merged(UniformSoup(), parallel, 1.0)["w"])


def test_model_stock_at_sixty_degrees_goes_two_thirds_of_the_way():
    """cos = 1/2: t = 2 cos / (1 + cos) = 2/3."""
    base = torch.zeros(2)
    models = [{"w": base}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.5, math.sqrt(0.75)])}]
    method = learn(ModelStock(), models)
    assert method.describe()["ratios"]["w"] == pytest.approx(2 / 3, rel=1e-7)


def test_model_stock_of_one_model_is_refused():
    with pytest.raises(UserError, match="model_stock needs two fine-tuned models or more"):
        learn(ModelStock(), several(1))


def test_angles_of_a_tensor_of_several_blocks_are_those_of_the_whole():
    shapes = {"w": (BLOCK_ELEMENTS + 12345,)}
    models = several(2, shapes=shapes)
    others = [fp64(model, "w") - fp64(models[0], "w") for model in models[1:]]
    wanted = stock_ratio([others[0], others[1] + others[0]])
    models[2]["w"] = (models[1]["w"].double() + others[1]).float()
    assert learn(ModelStock(), models).describe()["ratios"]["w"] == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(alpha=alphas, seed=seeds, count=st.integers(1, 3))
def test_fisher_weighs_each_element_by_its_information(alpha, seed, count):
    models = several(count, seed)
    fisher = information(models)

    def reference(name, first, *others):
        zero, *rest = (fp64(each, name) for each in fisher)
        weights = [(1 - alpha) * zero, *(alpha / count * each for each in rest)]
        total = sum(weight * value for weight, value in zip(weights, (first, *others), strict=True))
        line = (1 - alpha) * first + alpha * np.mean(others, axis=0)
        with np.errstate(invalid="ignore"):
            return np.where(sum(weights) == 0, line, total / sum(weights))

    check(merged(Fisher(), models, alpha, fisher=fisher), models, reference)


def test_fisher_takes_what_only_one_model_is_sure_of_from_that_model():
    models = [{"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.tensor([5.0, 6.0, 7.0])}]
    fisher = [{"w": torch.tensor([1.0, 0.0, 0.0])}, {"w": torch.tensor([0.0, 1.0, 0.0])}]
    found = merged(Fisher(), models, 0.25, fisher=fisher)["w"]
    assert found.tolist() == [1.0, 6.0, 4.0]


def test_equal_information_is_wise():
    models = several(1)
    fisher = [{name: torch.full_like(value, 1e-12) for name, value in models[0].items()}] * 2
    found, line = merged(Fisher(), models, 0.3, fisher=fisher), merged(Wise(), models, 0.3)
    for name, value in line.items():
        torch.testing.assert_close(found[name], value, rtol=3e-7, atol=3e-8)
