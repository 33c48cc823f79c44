"""What is kept of a sample, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wiseft_dist.evaluate.predictions import FeatureMoments, Member
from wiseft_dist.evaluate.sweep.moments import MomentSums
from wiseft_dist.evaluate.sweep.scores import Scores, score

HALVES = torch.tensor([[math.log(4), math.log(2), 0.0, 0.0]])
"""Softmax probabilities 1/2, 1/4, 1/8 and 1/8."""


def of(logits, labels, reference=None) -> dict[str, float | list[int]]:
    """The scores of one sample."""
    logits = torch.as_tensor(logits, dtype=torch.float32).reshape(1, -1)
    reference = None if reference is None else torch.tensor([reference]).log()
    scores = score(logits, torch.tensor([labels]), reference).as_arrays()
    return {name: values[0].tolist() for name, values in scores.items()}


def near(value: float):
    return pytest.approx(value, abs=1e-6)


def test_scores_of_a_sample_with_one_label():
    assert of(HALVES, [1], [0.25, 0.25, 0.25, 0.25]) == {
        "top5": [0, 1, 2, 3, -1],
        "confidences": near(0.5),
        "margins": near(0.693147),  # ln 2
        "log_probs": near(-1.386294),  # ln 1/4
        "briers": near(0.84375),  # 1/4 + 9/16 + 1/64 + 1/64
        "divergences": near(0.173287),  # (ln 1/2 + ln 1 + ln 2 + ln 2) / 4
    }


def test_of_several_labels_the_likeliest_counts():
    found = of(HALVES, [3, 1, -1])
    assert (found["log_probs"], found["briers"]) == (near(-1.386294), near(0.84375))
    assert of(HALVES, [2, -1, -1])["log_probs"] == near(-2.079442)  # ln 1/8
    assert of(HALVES, [0, 3, 1])["briers"] == near(0.34375)  # 1/4 + 1/16 + 1/64 + 1/64


def test_equal_logits_rank_by_class():
    assert of([1, 3, 3, 0, 3, 1, 3], [0])["top5"] == [1, 2, 4, 6, 0]
    assert of([5, 5], [1]) | {"divergences": None} == {
        "top5": [0, 1, -1, -1, -1],
        "confidences": 0.5,
        "margins": 0.0,
        "log_probs": near(-0.693147),
        "briers": near(0.5),
        "divergences": None,
    }


def test_classes_are_ranked_as_by_a_stable_sort():
    random = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (200, 30), generator=random).float()
    logits[::3, :27] = -math.inf
    top5 = score(logits, torch.zeros(200, 1).long(), None).top5
    assert torch.equal(top5, logits.sort(dim=-1, descending=True, stable=True).indices[:, :5].int())


def test_a_single_class_leaves_no_doubt():
    found = of([2.0], [0])
    assert (found["top5"], found["confidences"], found["margins"]) == ([0, -1, -1, -1, -1], 1.0, math.inf)
    assert (found["log_probs"], found["briers"]) == (0.0, 0.0)


def test_a_class_that_is_never_predicted_has_no_probability_and_no_divergence():
    found = of([0.0, -math.inf, math.log(3)], [1], [0.25, 0.0, 0.75])
    assert (found["top5"], found["confidences"]) == ([2, 0, 1, -1, -1], near(0.75))
    assert (found["log_probs"], found["briers"]) == (-math.inf, near(1.625))  # 1/16 + 1 + 9/16
    assert found["divergences"] == near(0.0)


def test_what_a_model_rules_out_and_theta_0_did_not_diverges_without_bound():
    assert of([0.0, -math.inf], [0], [0.5, 0.5])["divergences"] == math.inf


def test_without_theta_0_there_is_no_divergence():
    assert math.isnan(of(HALVES, [0])["divergences"])


def test_the_brier_score_of_a_sure_prediction_does_not_cancel():
    """1 - 2^-20 on the right class of 2: twice the square of 2^-20, which 1 - 2 p + p^2 loses in fp32."""
    logit = math.log(2**20 - 1)
    assert of([logit, 0.0], [0])["briers"] == pytest.approx(2 * 2.0**-40, rel=0.2)


def test_scores_of_batches_and_members_go_side_by_side():
    first, second = (score(HALVES + shift, torch.tensor([[1]]), None) for shift in (0, torch.tensor([0, 9.0, 0, 0])))
    joined = Scores.stack([Scores.join([first, second]), Scores.join([second, second])]).on_host().as_arrays()
    assert joined["top5"].shape == (2, 2, 5)
    assert joined["top5"][:, :, 0].tolist() == [[0, 1], [1, 1]]
    assert joined["margins"][0].tolist() == [first.margins.item(), second.margins.item()]
    assert joined["confidences"].dtype == np.float32
    assert joined["top5"].dtype == np.int32


def moments(x, y) -> FeatureMoments:
    sums = MomentSums()
    for start in range(0, len(x), 7):
        sums.add(torch.as_tensor(x[start : start + 7]), torch.as_tensor(y[start : start + 7]))
    return sums.moments()


def direct_cka(x, y) -> float:
    """From the centred Gram matrices, as Kornblith et al. define it (equations 1 and 4)."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = x @ x.T @ centre, y @ y.T @ centre  # noqa: E741, the paper's letters
    return np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l))


def test_linear_cka_by_hand():
    """Centred, x is (-1, 0, 1) and y is (-1, 2, -1) or (-2, 0, 2) on one axis each."""
    x = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    assert moments(x, np.array([[0.0], [3.0], [0.0]])).linear_cka() == near(0.0)
    assert moments(x, np.array([[1.0], [3.0], [5.0]])).linear_cka() == near(1.0)
    assert moments(x, np.array([[0.0], [0.0], [3.0]])).linear_cka() == near(0.75)  # 3^2 / (2 * 6)
    assert math.isnan(moments(x, np.array([[4.0], [4.0], [4.0]])).linear_cka())


def test_linear_cka_is_that_of_the_gram_matrices_and_adds_up_over_parts():
    random = np.random.default_rng(3)
    x = random.normal(size=(40, 5)) + 3
    y = x @ random.normal(size=(5, 6)) + random.normal(size=(40, 6))
    whole, parts = moments(x, y), moments(x[:13], y[:13]) + moments(x[13:], y[13:])
    assert 0.1 < direct_cka(x, y) < 0.99
    assert whole.linear_cka() == pytest.approx(direct_cka(x, y), abs=1e-12)
    assert parts.linear_cka() == pytest.approx(direct_cka(x, y), abs=1e-12)
    assert parts.num_samples == 40


def test_members_are_ordered_by_alpha():
    assert sorted([Member(1.0), Member(0.5, "weight"), Member(0.5, "output"), Member(0.0)]) == [
        Member(0.0),
        Member(0.5, "output"),
        Member(0.5),
        Member(1.0),
    ]
