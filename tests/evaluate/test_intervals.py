from __future__ import annotations

import numpy as np
import pytest

from wiseft_dist.evaluate.statistics.intervals import FEW_KINDS, Clusters, bootstrap, clopper_pearson
from wiseft_dist.evaluate.statistics.metrics.accuracy import mean_per_class
from wiseft_dist.evaluate.statistics.metrics.tally import proportion
from wiseft_dist.evaluate.statistics.metrics.wilds import macro_f1


def test_clopper_pearson_at_the_ends_has_a_closed_form():
    """0 of n: up to 1 - (0.025)^(1/n). n of n: from (0.025)^(1/n)."""
    none, all_of_them = clopper_pearson(np.array([0, 10]), 10)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert (all_of_them.low, all_of_them.high) == (pytest.approx(0.025**0.1), 1.0)
    assert (none.method, none.num_resamples) == ("clopper_pearson", 0)


def test_clopper_pearson_is_the_published_interval():
    (interval,) = clopper_pearson(np.array([81]), 263)  # Newcombe (1998), table I
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2527, 0.3676)


def test_the_same_seed_draws_the_same_and_another_does_not():
    tally = proportion(np.random.default_rng(0).random((2, 200)) < 0.7)
    one, two, other = (bootstrap(tally, seed=seed, num_resamples=50) for seed in (1, 1, 2))
    assert np.array_equal(one.values, two.values)
    assert not np.array_equal(one.values, other.values)


@pytest.mark.parametrize("num_kinds", [8, FEW_KINDS + 500])
def test_the_bootstrap_of_a_proportion_spreads_as_the_binomial_does(num_kinds):
    """Both ways of drawing: few kinds of samples, or about as many as samples."""
    rng = np.random.default_rng(0)
    num_alphas = 3 if num_kinds == 8 else 40
    correct = rng.random((num_alphas, 4000)) < 0.7
    tally = proportion(correct)
    assert (tally.sums.shape[0] > FEW_KINDS) == (num_kinds > FEW_KINDS)
    draws = bootstrap(tally, seed=99, num_resamples=800)
    accuracies = correct.mean(axis=1)
    np.testing.assert_allclose(draws.values.mean(axis=0), accuracies, atol=0.001)
    np.testing.assert_allclose(draws.values.std(axis=0), np.sqrt(accuracies * (1 - accuracies) / 4000), rtol=0.12)


def test_all_ensembles_of_a_row_are_computed_from_the_same_samples():
    correct = np.random.default_rng(0).random((1, 300)) < 0.5
    draws = bootstrap(proportion(np.concatenate([correct, ~correct])), seed=3, num_resamples=100)
    np.testing.assert_allclose(draws.values.sum(axis=1), 1.0)


@pytest.mark.parametrize("metric", [mean_per_class, macro_f1])
def test_a_resample_is_the_metric_of_the_drawn_samples(metric):
    """Weights stand for repeated samples: the metric of a weighting is that of the samples written out."""
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(5, size=60), rng.integers(5, size=(2, 60))
    drawn = rng.integers(60, size=60)

    def tally_of(chosen):
        columns = classes[:, chosen]
        return metric(labels[chosen], columns if metric is macro_f1 else columns == labels[chosen])

    tally = tally_of(np.arange(60))
    weights = np.bincount(tally.kinds[drawn], minlength=len(tally.counts))[None].astype(float)
    np.testing.assert_allclose(tally.weighted(weights)[0], tally_of(drawn).values)


def test_clusters_are_drawn_as_a_whole():
    """Two clusters, one all right and one all wrong: a resample has 0, 1 or 2 of the right one, nothing between."""
    correct = np.array([[True] * 100 + [False] * 100])
    clusters = Clusters("video", np.repeat([4, 9], 100))
    draws = bootstrap(proportion(correct), seed=99, num_resamples=400, clusters=clusters)
    values, counts = np.unique(draws.values, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / 400, [0.25, 0.5, 0.25], atol=0.08)
    interval = draws.interval(draws.values[:, 0])
    assert (interval.cluster, interval.num_clusters, interval.num_resamples) == ("video", 2, 400)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_clusters_of_one_sample_each_are_samples():
    correct = np.random.default_rng(0).random((1, 2000)) < 0.6
    draws = bootstrap(proportion(correct), seed=99, num_resamples=500, clusters=Clusters("place", np.arange(2000)))
    assert draws.values.std() == pytest.approx(np.sqrt(0.24 / 2000), rel=0.15)


def test_a_clustered_macro_f1_is_that_of_the_drawn_clusters():
    labels, classes = np.array([0, 1, 0, 2]), np.array([[0, 1, 1, 2]])
    places = Clusters("place", np.array([0, 0, 1, 1]))
    draws = bootstrap(macro_f1(labels, classes), seed=99, num_resamples=300, clusters=places)
    # Place 0 twice: all right. Place 1 twice: class 0 never found, class 2 always. Both: F1 2/3, 2/3 and 1.
    assert sorted({round(float(value), 6) for value in draws.values[:, 0]}) == [0.5, 0.777778, 1.0]


def test_percentiles_leave_out_2_5_percent_on_each_side():
    draws = bootstrap(proportion(np.ones((1, 5), dtype=bool)), seed=99, num_resamples=10)
    interval = draws.interval(np.arange(1001.0))
    assert (interval.low, interval.high) == (pytest.approx(25.0), pytest.approx(975.0))


def test_memory_is_bounded_by_drawing_in_chunks(monkeypatch):
    tally = proportion(np.random.default_rng(0).random((12, 500)) < 0.5)
    whole = bootstrap(tally, seed=99, num_resamples=64)
    monkeypatch.setattr("wiseft_dist.evaluate.statistics.intervals.CHUNK_BYTES", 8 * 500 * 3)
    np.testing.assert_allclose(bootstrap(tally, seed=99, num_resamples=64).values, whole.values)
