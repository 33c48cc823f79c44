from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, chi2
from statsmodels.stats.multitest import multipletests

from wiseft_dist.evaluate.statistics.intervals import bootstrap
from wiseft_dist.evaluate.statistics.metrics.tally import proportion
from wiseft_dist.evaluate.statistics.paired import compare, holm, mcnemar


def right(only_first, only_second, both=5, neither=5):
    """Two ensembles with so many samples that only one of them has right."""
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return np.array(first), np.array(second)


def test_few_samples_that_only_one_has_right_are_tested_exactly():
    test = mcnemar(*right(1, 7))
    assert (test.num_only_first, test.num_only_second, test.method) == (1, 7, "exact")
    assert test.p_value == pytest.approx(2 * binom.cdf(1, 8, 0.5))  # 0.0703125
    assert test.p_value == pytest.approx(0.0703125)


def test_many_are_tested_by_chi_squared_with_continuity_correction():
    test = mcnemar(*right(10, 40))
    assert test.method == "chi2"
    assert test.p_value == pytest.approx(chi2.sf((30 - 1) ** 2 / 50, 1))  # 16.82


def test_samples_that_both_have_right_or_wrong_say_nothing():
    assert mcnemar(*right(3, 9, both=0, neither=0)) == mcnemar(*right(3, 9, both=1000, neither=700))


@pytest.mark.parametrize("each", [0, 4])
def test_ensembles_that_differ_evenly_are_not_told_apart(each):
    assert mcnemar(*right(each, each)).p_value == 1.0


def comparisons(correct, alphas):
    tally = proportion(correct)
    return compare(alphas, tally.values, bootstrap(tally, seed=99), correct)


def test_every_alpha_is_compared_with_both_ends_and_the_ends_once():
    correct = np.random.default_rng(0).random((3, 50)) < 0.5
    found = [(entry.alpha, entry.against) for entry in comparisons(correct, [0.0, 0.5, 1.0])]
    assert found == [(0.5, "zero_shot"), (1.0, "zero_shot"), (0.5, "finetuned")]


def test_without_an_endpoint_there_is_nothing_to_compare_with():
    correct = np.random.default_rng(0).random((2, 50)) < 0.5
    assert comparisons(correct, [0.3, 0.5]) == ()
    assert [entry.against for entry in comparisons(correct, [0.5, 1.0])] == ["finetuned"]


def test_the_difference_is_in_percentage_points_and_its_interval_is_paired():
    """One sample in ten turns right and none wrong: always better, however the accuracy itself varies."""
    first = np.random.default_rng(0).random(1000) < 0.5
    second = first.copy()
    second[np.flatnonzero(~first)[:100]] = True
    (found,) = comparisons(np.stack([first, second]), [0.0, 0.5])
    assert found.difference == pytest.approx(10.0)
    # The standard error of the paired difference is sqrt(0.1 * 0.9 / 1000) = 0.95 pp; unpaired it is 2.2 pp.
    assert (found.interval.high - found.interval.low) == pytest.approx(2 * 1.96 * 0.949, rel=0.1)
    assert found.significant


def test_a_difference_within_noise_is_not_significant():
    rng = np.random.default_rng(0)
    (found,) = comparisons(rng.random((2, 400)) < 0.5, [0.0, 0.5])
    assert not found.significant


def test_p_values_are_corrected_for_how_many_comparisons_there_are():
    """Holm: the smallest of three times three, the next times two, the largest as it is, never falling."""
    first, second = right(2, 16)
    correct = np.stack([second, first, second])
    found = comparisons(correct, [0.0, 0.5, 1.0])
    raw = {(entry.alpha, entry.against): entry.mcnemar.p_value for entry in found}
    assert raw[1.0, "zero_shot"] == 1.0
    low = raw[0.5, "zero_shot"]
    adjusted = [entry.adjusted_p_value for entry in found]
    assert adjusted == [pytest.approx(3 * low), 1.0, pytest.approx(3 * low)]


def test_holms_correction_is_that_of_statsmodels():
    for size in (0, 1, 2, 39):
        p_values = np.random.default_rng(size).random(size) ** 3
        expected = multipletests(p_values, method="holm")[1] if size else []
        np.testing.assert_allclose(holm(p_values), expected)
