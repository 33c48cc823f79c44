from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from predictions_from_logits import predictions_from_logits
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.data.labels import EvaluationTarget
from wiseft_dist.data.shards import Sample
from wiseft_dist.data.text_identity import text_identity
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.statistics.metrics.accuracy import class_counts, mean_per_class, single_labels, top5
from wiseft_dist.evaluate.statistics.metrics.corruption import alexnet_errors, corruption_of, mean_corruption_error
from wiseft_dist.evaluate.statistics.metrics.primary import named_groups, primary_metric, refuse_unknown
from wiseft_dist.evaluate.statistics.metrics.tally import distinct, proportion
from wiseft_dist.evaluate.statistics.metrics.video import score_anchors
from wiseft_dist.evaluate.statistics.metrics.wilds import group_accuracies, macro_f1, worst_group


@pytest.fixture
def random():
    """400 samples of 7 classes, of which one never occurs, by 3 ensembles."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, 5, 6], size=400)
    strength = np.array([0.6, 1.2, 2.4])[:, None, None]
    logits = rng.normal(size=(3, 400, 7)) + strength * (np.arange(7) == labels[:, None])
    return labels, predictions_from_logits(logits, labels), logits


def test_a_proportion_is_the_fraction_of_right_samples_and_alike_samples_are_one_kind():
    correct = np.array([[True, True, False, True], [False, False, False, True]])
    tally = proportion(correct)
    assert tally.values.tolist() == [0.75, 0.25]
    assert tally.sums.shape[0] == 3  # samples 0 and 1 are alike
    assert tally.num_units == 4


def test_alike_samples_are_told_by_all_columns():
    first, kinds = distinct(np.array([5, 5, 7, 5]), np.array([[True, True, True, False]]))
    assert sorted(first.tolist()) == [0, 2, 3]
    assert kinds[0] == kinds[1]
    assert len(set(kinds.tolist())) == 3


def test_top5_looks_for_any_right_class_and_never_for_fills():
    classes = np.array([[[3, 1, 2, 0, 4], [3, 1, -1, -1, -1]]])
    assert top5(np.array([[4], [0]]), classes).tolist() == [0.5]
    assert top5(np.array([[9, 4], [0, -1]]), classes).tolist() == [0.5]


def test_top5_is_scikit_learns(random):
    labels, predictions, logits = random
    ours = top5(predictions.labels, predictions.top5)
    theirs = [top_k_accuracy_score(labels, scores, k=5, labels=range(7)) for scores in logits]
    np.testing.assert_allclose(ours, theirs)


def test_mean_per_class_weighs_classes_not_samples():
    labels = np.array([0, 0, 0, 2])  # class 1 has no sample
    correct = np.array([[True, True, False, False], [True, True, True, True]])
    np.testing.assert_allclose(mean_per_class(labels, correct).values, [1 / 3, 1.0])
    counts, right = class_counts(labels, correct)
    assert counts.tolist() == [3, 0, 1]
    assert right.tolist() == [[2, 0, 0], [3, 0, 1]]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_mean_per_class_is_scikit_learns_balanced_accuracy(random):
    labels, predictions, _ = random
    theirs = [balanced_accuracy_score(labels, classes) for classes in predictions.classes]
    np.testing.assert_allclose(mean_per_class(labels, predictions.correct).values, theirs)


def test_macro_f1_by_hand():
    # Class 0: 2 of 3 found, no answer wrong: F1 4/5. Class 1: 1 of 1 found, 1 of 2 answers wrong: 2/3.
    labels, classes = np.array([0, 0, 0, 1]), np.array([[0, 0, 1, 1]])
    np.testing.assert_allclose(macro_f1(labels, classes).values, [(0.8 + 2 / 3) / 2])


def test_macro_f1_leaves_out_classes_that_no_sample_has_even_if_they_are_predicted():
    # Class 5 is only predicted: its F1 of 0 does not enter, but the sample is missing from class 1's.
    labels, classes = np.array([0, 1, 1]), np.array([[0, 1, 5]])
    np.testing.assert_allclose(macro_f1(labels, classes).values, [(1 + 2 / 3) / 2])


def test_macro_f1_is_the_formula_of_wilds(random):
    labels, predictions, _ = random

    def wilds(y_pred, y_true):  # F1 of its package: scikit-learn's, over the labels in y_true
        return f1_score(y_true, y_pred, average="macro", labels=np.unique(y_true), zero_division=0)

    theirs = [wilds(classes, labels) for classes in predictions.classes]
    np.testing.assert_allclose(macro_f1(labels, predictions.classes).values, theirs)


def test_the_worst_group_is_the_lowest_accuracy_that_counts():
    groups = np.array([0, 0, 1, 1, 1, 5])
    correct = np.array([[True, False, True, True, False, False], [True, True, False, False, True, True]])
    np.testing.assert_allclose(worst_group(groups, correct).values, [0.0, 1 / 3])
    np.testing.assert_allclose(worst_group(groups, correct, {5}).values, [0.5, 1 / 3])
    assert group_accuracies(groups, correct)[5].tolist() == [0.0, 1.0]


def test_the_worst_group_is_the_formula_of_wilds():
    """Accuracy by group over indices 0..n-1, groups of no samples left out, then the minimum."""
    rng = np.random.default_rng(1)
    groups, correct = rng.choice([0, 1, 3, 5], size=300), rng.random((2, 300)) < 0.6
    excluded, num_groups = 5, 6

    def wilds(row):
        counts = np.bincount(groups, minlength=num_groups)
        accuracies = np.bincount(groups, row, num_groups) / np.maximum(counts, 1)
        return min(accuracies[group] for group in range(num_groups) if counts[group] and group != excluded)

    np.testing.assert_allclose(worst_group(groups, correct, {excluded}).values, [wilds(row) for row in correct])


def test_without_a_group_that_counts_there_is_no_worst_one():
    assert np.isnan(worst_group(np.array([2, 2]), np.array([[True, False]]), {2}).values).all()


def test_pm0_is_the_anchor_and_pm_k_the_anchor_with_all_its_neighbours():
    anchors = np.array([7, 7, 7, 3, 3, 3, 9])
    offsets = np.array([0, -1, 11, 0, 2, -10, 4])  # frame 11 away is too far; anchor 9 itself was not scored
    correct = np.array([[1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1, 1]], dtype=bool)
    results = score_anchors(correct, anchors, offsets, 10)
    assert results.frames.tolist() == [3, 0]
    assert results.pm0.tolist() == [[True, True], [True, False]]
    assert results.pm_k.tolist() == [[False, True], [True, False]]


def test_a_frame_with_several_right_classes_is_right_with_any_of_them():
    logits = np.eye(4)[[1, 3, 2]][None]
    labels = np.array([[0, 1, -1], [0, 1, 2], [2, -1, -1]])
    predictions = predictions_from_logits(
        logits, labels, metadata={"anchor": np.array([0, 0, 1]), "offset": np.array([0, 5, 0])}
    )
    spec = DatasetSpec(metric="pm0", anchor="anchor", offset="offset", neighbours=10)
    primary = primary_metric("frames", spec, predictions, predictions.correct)
    assert primary.tally.values.tolist() == [1.0]
    assert primary.anchors.pm_k.tolist() == [[False, True]]
    assert single_labels(labels) is None


def test_fills_beside_one_label_leave_it_one_label():
    assert single_labels(np.array([[2, -1], [0, -1]])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (DatasetSpec(metric="worst_group"), "set data.datasets.fmow.group"),
        (DatasetSpec(metric="worst_group", group="region"), "'region', which its samples do not have"),
        (DatasetSpec(cluster="place"), "'place', which its samples do not have"),
        (DatasetSpec(metric="macro_f1"), "several"),
    ],
)
def test_a_description_that_does_not_fit_the_samples_is_a_sentence(spec, sentence):
    predictions = predictions_from_logits(np.zeros((1, 2, 3)), [[0, 1], [1, -1]])
    with pytest.raises(UserError, match=sentence):
        primary_metric("fmow", spec, predictions, predictions.correct)


def test_a_dataset_without_scored_samples_is_an_error():
    predictions = predictions_from_logits(np.zeros((1, 0, 3)), np.zeros((0, 1)))
    with pytest.raises(RunError, match="not one sample"):
        primary_metric("empty", DatasetSpec(), predictions, predictions.correct)


def test_mce_by_hand():
    """Twice AlexNet's error on fog, half of it elsewhere: CE 2 and 14 times 0.5, so mCE (2 + 7) / 15 = 0.6."""
    errors = {
        (name, severity): np.array([(2.0 if name == "fog" else 0.5) * error, error])
        for name, error in alexnet_errors().items()
        for severity in range(1, 6)
    }
    zero_shot, finetuned = mean_corruption_error(errors, [0.0, 1.0])
    assert zero_shot.mce == pytest.approx(0.6)
    assert zero_shot.corruption_errors["fog"] == pytest.approx(2.0)
    assert finetuned.mce == pytest.approx(1.0)


def test_ce_averages_the_severities_before_it_divides_by_alexnet():
    errors = {("fog", severity): np.array([0.1 * severity]) for severity in range(1, 6)}
    (only,) = mean_corruption_error(errors, [0.5])
    assert only.corruption_errors == {"fog": pytest.approx(0.3 / 0.819324)}
    assert only.mce is None  # 14 corruptions are missing


def test_a_corruption_with_a_severity_missing_counts_nowhere():
    assert mean_corruption_error({("fog", 1): np.array([0.1])}, [0.5]) == ()


def test_alexnet_errors_are_those_of_15_corruptions():
    assert len(alexnet_errors()) == 15
    assert sum(alexnet_errors().values()) / 15 == pytest.approx(0.788993, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("imagenet_c.gaussian_noise.5", ("gaussian_noise", 5)),
        ("imagenet_c.gaussian_noise.6", None),
        ("imagenet_c.rain.1", None),
        ("imagenet", None),
    ],
)
def test_corruption_and_severity_are_read_from_the_name(name, place):
    assert corruption_of(name) == place


def test_a_dataset_whose_groups_are_all_excluded_is_an_error():
    predictions = predictions_from_logits(np.zeros((1, 2, 3)), [0, 1], metadata={"region": np.array([5, 5])})
    spec = DatasetSpec(metric="worst_group", group="region", excluded_groups=(5,), metadata={"region": "npy:0"})
    with pytest.raises(RunError, match="groups that do not count"):
        primary_metric("fmow", spec, predictions, predictions.correct)


def test_groups_of_a_column_of_texts_are_named_and_excluded_by_their_texts():
    """Four of five right in the north, one of two in the south, none of one elsewhere."""
    texts = ["north"] * 5 + ["south"] * 2 + ["other"]
    labels = np.array([0, 0, 0, 0, 1, 0, 1, 1])
    regions = np.array([text_identity(text) for text in texts])
    predictions = predictions_from_logits(np.eye(2)[[0] * 8][None], labels, metadata={"region": regions})
    columns = {"metric": "worst_group", "group": "region", "metadata": {"region": "json:region"}}
    names = ("north", "south", "other")
    for excluded in (("other",), (2,)):
        spec = DatasetSpec(**columns, group_names=names, excluded_groups=excluded)
        assert primary_metric("mine", spec, predictions, predictions.correct).tally.values.tolist() == [0.5]
        assert [named_groups(spec)[region] for region in regions] == texts
    spec = DatasetSpec(**columns, group_names=names)
    assert primary_metric("mine", spec, predictions, predictions.correct).tally.values.tolist() == [0.0]


def test_a_text_is_the_same_number_where_samples_are_read():
    sample = Sample("s0", 0, {"cls": b"0", "json": b'{"region": "north"}'}, "0.tar")
    target = EvaluationTarget(2, metadata={"region": "json:region"})
    assert target(sample, np.random.default_rng(0)).tolist() == [0, text_identity("north")]


@pytest.mark.parametrize(
    ("names", "sentence"), [(("a", "b", "a"), "'a' twice"), (("a", "2"), "'2', which could be taken")]
)
def test_group_names_that_do_not_tell_groups_apart_are_refused(names, sentence):
    with pytest.raises(ValueError, match=sentence):
        DatasetSpec(group_names=names)


def test_many_groups_need_little_memory():
    """300 groups times 21 alphas times 20,000 samples: a dense table of doubles would be 1 GB."""
    rng = np.random.default_rng(0)
    groups, correct = rng.integers(300, size=20_000), rng.random((21, 20_000)) < 0.7
    tracemalloc.start()
    tally = worst_group(groups, correct)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    expected = [min(row[groups == group].mean() for group in range(300)) for row in correct[:2]]
    assert tally.values[:2] == pytest.approx(expected)


VIDEO = DatasetSpec(metric="pm0", anchor="anchor", offset="offset", cluster="video")


def frames(*, videos, anchors, offsets):
    """Frames of which the first alone is right."""
    columns = {"video": np.array(videos), "anchor": np.array(anchors), "offset": np.array(offsets)}
    labels = [0] + [1] * (len(videos) - 1)
    return predictions_from_logits(np.eye(2)[[0] * len(videos)][None], labels, metadata=columns)


def test_anchors_of_one_number_in_two_videos_are_two_anchors():
    predictions = frames(videos=[7, 8, 8], anchors=[1, 1, 1], offsets=[0, 0, 3])
    primary = primary_metric("vid", VIDEO, predictions, predictions.correct)
    assert primary.tally.num_units == 2
    assert primary.anchors.pm0.tolist() == primary.anchors.pm_k.tolist() == [[True, False]]
    assert primary.clusters.ids.tolist() == [7, 8]


@pytest.mark.parametrize("spec", [VIDEO, VIDEO.model_copy(update={"cluster": None})])
def test_two_frames_of_offset_0_around_one_anchor_are_an_error(spec):
    predictions = frames(videos=[7, 7, 7], anchors=[1, 1, 2], offsets=[0, 0, 0])
    with pytest.raises(RunError, match=r"vid: 1 anchors have several frames whose offset is 0, such as .*'s0000000'"):
        primary_metric("vid", spec, predictions, predictions.correct)


def test_cells_of_a_model_that_said_nothing_are_refused_with_its_alpha():
    predictions = predictions_from_logits(np.zeros((2, 3, 4)), [0, 1, 2])
    members = [Member(0.0), Member(0.5)]
    refuse_unknown("photo", members, predictions)
    predictions.confidences[1, 1:] = np.nan
    with pytest.raises(RunError, match=r"photo: at alpha 0.5 2 of 3 samples have class probabilities"):
        refuse_unknown("photo", members, predictions)
