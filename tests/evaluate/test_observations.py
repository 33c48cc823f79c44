from __future__ import annotations

import numpy as np
import pytest

from wiseft_dist.evaluate.statistics.intervals import Draws, bootstrap
from wiseft_dist.evaluate.statistics.metrics.tally import proportion
from wiseft_dist.evaluate.statistics.observations import observe

ALPHAS = [0.0, 0.25, 0.5, 1.0]


def observations(values, spread=0.0, alphas=ALPHAS):
    """From accuracies, and resamples that differ from them by noise of so many fractions."""
    values = np.array(values)
    noise = np.random.default_rng(0).normal(0, 1, (500, len(values))) * spread
    return observe("sketch", alphas, values, Draws(values + noise), title="ImageNet-Sketch")


def test_a_curve_above_the_line_with_a_peak_bears_out_both():
    first, second = observations([0.50, 0.60, 0.64, 0.60])
    assert (first.number, first.holds, first.within_noise) == (1, True, False)
    assert (second.number, second.holds, second.within_noise) == (2, True, False)
    # The line is at 0.525 and 0.55: gaps of 7.5 and 9 pp; the better endpoint is at 0.60: 0 and 4 pp.
    assert [gap.gap for gap in first.gaps] == [pytest.approx(7.5), pytest.approx(9.0)]
    assert [gap.gap for gap in second.gaps] == [pytest.approx(0.0), pytest.approx(4.0)]
    assert (first.deciding.alpha, second.deciding.alpha) == (0.25, 0.5)
    assert first.deciding.compared_with == pytest.approx(0.525)


def test_one_alpha_below_the_line_is_enough_against_observation_1():
    first, second = observations([0.50, 0.51, 0.58, 0.60])
    assert not first.holds
    assert (first.deciding.alpha, first.deciding.gap) == (0.25, pytest.approx(-1.5))
    assert not first.within_noise
    assert not second.holds
    assert second.deciding.gap == pytest.approx(-2.0)


def test_a_straight_line_bears_out_observation_1_and_not_2():
    first, second = observations([0.2, 0.3, 0.4, 0.6])
    assert first.holds
    assert not second.holds


def test_what_noise_could_turn_round_is_said_to_be_within_noise():
    first, second = observations([0.500, 0.524, 0.552, 0.600], spread=0.01)
    assert (first.holds, first.within_noise) == (False, True)
    first, second = observations([0.50, 0.57, 0.601, 0.60], spread=0.01)
    assert (second.holds, second.within_noise) == (True, True)


def test_sentences_say_what_was_looked_at_what_came_out_and_whether_it_is_noise():
    first, second = observations([0.50, 0.51, 0.58, 0.60])
    assert first.sentence == (
        "Observation 1 does not hold on ImageNet-Sketch: accuracy lies below the straight line between the endpoints "
        "at 1 of 2 alphas (farthest at alpha 0.25: 51.00 % against 52.50 %); -1.50 pp, 95 % interval -1.50 to "
        "-1.50 pp: more than sampling noise."
    )
    assert second.sentence.startswith("Observation 2 does not hold on ImageNet-Sketch: no alpha beats both endpoints")
    first, second = observations([0.50, 0.60, 0.64, 0.60])
    assert "at no alpha does accuracy lie below the straight line" in first.sentence
    assert "1 of 2 alphas is better than both endpoints (best at alpha 0.5: 64.00 % against 60.00 %)" in second.sentence


def test_noise_comes_from_the_samples_and_is_paired():
    """The ensemble has right what either end has right: on every resample it is at least as good as both."""
    rng = np.random.default_rng(0)
    ends = rng.random((2, 400)) < 0.6
    correct = np.stack([ends[0], ends[0] | ends[1], ends[1]])
    tally = proportion(correct)
    first, second = observe("x", [0.0, 0.5, 1.0], tally.values, bootstrap(tally, seed=1))
    assert first.holds and second.holds
    assert first.deciding.interval.low > 0
    assert second.deciding.interval.low > 0
    assert not second.within_noise


@pytest.mark.parametrize("alphas", [[0.0, 0.2, 0.5, 0.9], [0.1, 0.5, 0.7, 1.0]])
def test_without_both_ends_nothing_is_observed(alphas):
    assert observations([0.1, 0.2, 0.3, 0.4], alphas=alphas) == ()


def test_without_an_alpha_between_the_ends_nothing_is_observed():
    assert observations([0.1, 0.2], alphas=[0.0, 1.0]) == ()


def test_numbers_that_are_not_defined_are_not_observed():
    assert observations([0.1, np.nan, 0.3, 0.4]) == ()
