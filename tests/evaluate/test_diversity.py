from __future__ import annotations

import numpy as np
import pytest
from predictions_from_logits import predictions_from_logits
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score

from wiseft_dist.evaluate.predictions import FeatureMoments
from wiseft_dist.evaluate.statistics.diversity import cohens_kappa, diversity


def one_hot(classes, scale=2.0, num_classes=4):
    return scale * np.eye(num_classes)[np.asarray(classes)]


LABELS = [0, 1, 2, 3, 0, 1]
ZERO_SHOT = [0, 1, 2, 0, 1, 0]  # right: 3 of 6
ENSEMBLE = [0, 1, 0, 3, 2, 0]
FINETUNED = [0, 2, 0, 3, 2, 1]  # right: 0, 3 and 5
ALPHAS = [0.0, 0.5, 1.0]


@pytest.fixture
def found():
    logits = np.stack([one_hot(ZERO_SHOT), one_hot(ENSEMBLE), one_hot(FINETUNED, scale=3.0)])
    return diversity(predictions_from_logits(logits, LABELS), ALPHAS)


def test_prediction_diversity_is_how_often_exactly_one_of_the_two_is_right(found):
    assert found.prediction_diversity == pytest.approx(4 / 6)
    assert found.only_zero_shot_right == pytest.approx(2 / 6)  # samples 1 and 2
    assert found.only_finetuned_right == pytest.approx(2 / 6)  # samples 3 and 5
    assert found.disagreement == pytest.approx(5 / 6)  # sample 4 too: both are wrong, differently


def test_kappa_by_hand():
    # Agreement 1/6. By chance: zero-shot names 0, 1, 2 in 3, 2, 1 cases; fine-tuned 0, 1, 2, 3 in 2, 1, 2, 1.
    chance = (3 * 2 + 2 * 1 + 1 * 2) / 36
    assert cohens_kappa(np.array(ZERO_SHOT), np.array(FINETUNED)) == pytest.approx((1 / 6 - chance) / (1 - chance))


def test_kappa_is_scikit_learns(found):
    assert found.kappa_complement == pytest.approx(1 - cohen_kappa_score(ZERO_SHOT, FINETUNED))


def test_two_models_that_only_ever_name_one_class_agree():
    assert cohens_kappa(np.zeros(5, dtype=int), np.zeros(5, dtype=int)) == 1.0


def test_kl_is_of_zero_shot_against_finetuned(found):
    first, second = softmax(one_hot(ZERO_SHOT), axis=1), softmax(one_hot(FINETUNED, scale=3.0), axis=1)
    assert found.mean_kl == pytest.approx(entropy(first, second, axis=1).mean(), rel=1e-6)


def test_without_what_they_are_made_of_kl_and_cka_are_left_out():
    logits = np.stack([one_hot(ZERO_SHOT), one_hot(FINETUNED)])
    found = diversity(predictions_from_logits(logits, LABELS, zero_shot=None), [0.0, 1.0])
    assert found.mean_kl is None
    assert found.cka_complement is None


def test_cka_is_that_of_the_centred_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)) + 5, rng.normal(size=(30, 3))
    y[:, 0] += x[:, 1]
    features = FeatureMoments(30, x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)
    logits = np.stack([one_hot(ZERO_SHOT), one_hot(FINETUNED)])
    found = diversity(predictions_from_logits(logits, LABELS, features=features), [0.0, 1.0])
    xc, yc = x - x.mean(0), y - y.mean(0)
    gram_x, gram_y = xc @ xc.T, yc @ yc.T  # the other form of linear CKA, over samples
    expected = (gram_x * gram_y).sum() / (np.linalg.norm(gram_x) * np.linalg.norm(gram_y))
    assert found.cka_complement == pytest.approx(1 - expected)


def moments_of(x, y):
    return FeatureMoments(len(x), x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)


def test_features_that_are_one_point_but_for_rounding_have_no_cka():
    rng = np.random.default_rng(0)
    point = np.full((50, 3), 0.7) + 1e-15 * rng.normal(size=(50, 3))
    assert np.isnan(moments_of(point, rng.normal(size=(50, 3))).linear_cka())
    assert np.isnan(moments_of(rng.normal(size=(50, 3)), point).linear_cka())


def test_cka_is_never_above_1():
    """Without the limit one of these is 1 + 2e-16: 1 - CKA would be below 0."""
    for seed in range(50):
        x = np.random.default_rng(seed).normal(size=(20, 4))
        assert 1 - 1e-12 < moments_of(x, x).linear_cka() <= 1.0


def test_whom_the_ensemble_follows_where_the_two_disagree(found):
    """They disagree on samples 1 to 5, where the ensemble says 1, 0, 3, 2, 0."""
    override = found.overrides[1]
    assert override.alpha == 0.5
    assert override.follows_zero_shot == pytest.approx(2 / 5)  # samples 1 and 5
    assert override.follows_finetuned == pytest.approx(3 / 5)  # samples 2, 3 and 4
    assert override.follows_neither == 0.0
    assert override.right_following_zero_shot == pytest.approx(1 / 2)
    assert override.right_following_finetuned == pytest.approx(1 / 3)
    assert override.right_following_neither is None


def test_the_ends_follow_themselves(found):
    assert found.overrides[0].follows_zero_shot == 1.0
    assert found.overrides[2].follows_finetuned == 1.0


def test_a_third_class_follows_neither():
    logits = np.stack([one_hot([0, 0]), one_hot([2, 0]), one_hot([1, 0])])
    found = diversity(predictions_from_logits(logits, [2, 0]), ALPHAS)
    assert found.overrides[1].follows_neither == 1.0
    assert found.overrides[1].right_following_neither == 1.0


def test_models_that_never_disagree_leave_nothing_to_follow():
    logits = np.stack([one_hot([0, 1]), one_hot([0, 1])])
    assert diversity(predictions_from_logits(logits, [0, 1]), [0.0, 1.0]).overrides == ()


def test_margins_are_larger_where_a_model_is_sure_and_split_by_who_is_right():
    zero_shot = np.array([[3.0, 0, 0], [0, 1, 0], [2, 0, 0], [5, 0, 0]])  # right, right, wrong, wrong
    finetuned = np.array([[4.0, 0, 0], [2, 0, 0], [0, 0, 6], [7, 0, 0]])  # right, wrong, right, wrong
    found = diversity(predictions_from_logits(np.stack([zero_shot, finetuned]), [0, 1, 2, 2]), [0.0, 1.0])
    first, second = found.zero_shot_margins, found.finetuned_margins
    assert (first.right, first.wrong, first.only_right, first.other_right) == (2.0, 3.5, 1.0, 2.0)
    assert (second.right, second.wrong, second.only_right, second.other_right) == (5.0, 4.5, 6.0, 2.0)


def test_there_is_no_diversity_without_both_ends():
    predictions = predictions_from_logits(np.zeros((2, 3, 2)), [0, 1, 0])
    assert diversity(predictions, [0.0, 0.5]) is None
