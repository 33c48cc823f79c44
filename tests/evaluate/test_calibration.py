from __future__ import annotations

import numpy as np
import pytest
from predictions_from_logits import predictions_from_logits
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from wiseft_dist.evaluate.statistics.metrics.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)


def ece(confidences, correct):
    return expected_calibration_error(reliability(np.array(confidences, dtype=np.float32), np.array(correct)))


def test_ece_by_hand():
    # Bin (0.6, 0.667]: 2 samples, confidence 0.625, accuracy 0.5. Bin (0.867, 0.933]: 2 samples, 0.9, accuracy 1.
    assert ece([0.62, 0.63, 0.9, 0.9], [True, False, True, True]) == pytest.approx((0.125 + 0.1) / 2, abs=1e-6)


def test_the_most_confident_samples_are_in_the_last_bin_and_count():
    assert ece([1.0, 1.0], [False, True]) == pytest.approx(0.5)
    bins = reliability(np.array([1.0], dtype=np.float32), np.array([True]))
    assert [entry.num_samples for entry in bins] == [0] * 14 + [1]


def test_a_confidence_at_an_edge_is_in_the_bin_that_ends_there():
    bins = reliability(np.array([0.0, 0.2, 3 / 15, 1 / 15], dtype=np.float32), np.ones(4, dtype=bool))
    assert [entry.num_samples for entry in bins[:4]] == [2, 0, 2, 0]


def test_empty_bins_have_no_accuracy():
    bins = reliability(np.array([0.5], dtype=np.float32), np.array([True]))
    assert bins[0].accuracy is None
    assert bins[0].confidence is None
    assert bins[7].accuracy == 1.0


def test_bins_are_scikit_learns():
    rng = np.random.default_rng(0)
    confidences = rng.random(2000).astype(np.float32)
    correct = rng.random(2000) < confidences**2
    bins = reliability(confidences, correct)
    accuracies, means = calibration_curve(correct, confidences, n_bins=15)
    np.testing.assert_allclose([entry.accuracy for entry in bins], accuracies)
    np.testing.assert_allclose([entry.confidence for entry in bins], means, rtol=1e-6)


def test_nll_and_brier_are_those_of_the_probabilities():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(1, 50, 4)), rng.integers(4, size=50)
    predictions = predictions_from_logits(logits, labels)
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    nll = negative_log_likelihood(predictions.log_probs[0])
    assert nll == pytest.approx(log_loss(labels, probabilities, labels=range(4)), rel=1e-6)
    expected = ((probabilities - np.eye(4)[labels]) ** 2).sum(axis=1).mean()
    assert brier_score(predictions.briers[0]) == pytest.approx(expected, rel=1e-6)


def test_a_right_class_without_any_probability_makes_nll_infinite():
    assert negative_log_likelihood(np.array([-0.1, -np.inf], dtype=np.float32)) == np.inf
