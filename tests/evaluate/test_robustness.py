from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import describe_dataset
from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.own_fit import StandardModel, fit_models, own_fit, read_models
from wiseft_dist.evaluate.statistics.robustness import (
    Fit,
    Piece,
    ReferenceAxis,
    ShiftValue,
    effective_robustness,
    published_fits,
    reference_axis,
)


def shift_value(alpha, value):
    return ShiftValue(alpha, value, Interval(value - 0.01, value + 0.01, "clopper_pearson"))


def axis(num_samples, *num_correct, undetermined=0):
    return ReferenceAxis("imagenet", 1, num_samples, np.array(num_correct), np.array([undetermined] * len(num_correct)))


@pytest.mark.parametrize(
    ("fit", "reference", "predicted", "actual", "effective"),
    [
        ("imagenet_v2", 0.6330, 50.14, 55.77, 5.63),
        ("imagenet_sketch", 0.6330, 14.35, 42.37, 28.02),
        ("imagenet_r", 0.8810, 30.30, 69.26, 38.95),
        ("objectnet", 0.70928, 25.86, 43.96, 18.10),
    ],
)
def test_clip_vit_b32_zero_shot_comes_out_as_published(fit, reference, predicted, actual, effective):
    """Predicted, actual and effective robustness are published, in percent; the reference accuracies are not.

    V2 and Sketch have the same axis: the one reference accuracy that gives V2's prediction gives Sketch's too. Those
    of R and ObjectNet are the counts of their classes' images (8,810 of 10,000 and 4,433 of 6,250) whose prediction is
    the published one: there the vector tests the difference alone.
    """
    found = effective_robustness(
        published_fits()[fit], axis(100_000, 100_000 * reference), [shift_value(0.0, actual / 100)]
    )
    assert 100 * found.at(0.0).predicted == pytest.approx(predicted, abs=0.006)
    assert found.at(0.0).effective_robustness == pytest.approx(effective, abs=0.011)
    assert not found.at(0.0).extrapolated


def test_standard_models_lie_on_the_line_by_hand():
    # logit(0.8) = ln 4 = 1.386294; slope 0.9232, intercept -0.4977: 0.782127, and 1 / (1 + e^-0.782127) = 0.686142.
    assert published_fits()["imagenet_v2"].predict(0.8) == pytest.approx(0.686142, abs=1e-5)


def test_imagenet_a_has_another_line_on_each_side_of_its_kink():
    fit = published_fits()["imagenet_a"]
    below, above = fit.predict(0.9185), fit.predict(0.9187)
    assert below == pytest.approx(float(expit(0.6894 * logit(0.9185) - 5.14)))
    assert above == pytest.approx(float(expit(2.9560 * logit(0.9187) - 10.2774)))
    assert fit.predict(0.9186) == pytest.approx(float(expit(2.9560 * logit(0.9186) - 10.2774)))
    assert above > below


TOP5 = np.array(
    [
        [[9, 1, 2, 3, 4], [2, 1, 5, 6, 7], [8, 9, 2, 1, 0], [5, 6, 7, 8, 9], [1, 2, 3, 4, 5], [2, -1, -1, -1, -1]],
        [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [3, 2, 4, 5, 6], [9, 8, 7, 6, 5], [3, -1, -1, -1, -1]],
    ]
)
LABELS = np.array([1, 1, 2, 2, 9, 3])


def test_on_the_reference_axis_only_the_shifts_classes_compete():
    """The classes 1 and 2 (one has two images, the other two): which of the two comes first in the order of all."""
    found = reference_axis("imagenet", LABELS, TOP5, [[1], [2]])
    assert (found.num_classes, found.num_samples) == (2, 4)
    assert found.num_correct.tolist() == [2, 4]  # first row: images 0 and 2 are right, 1 is wrong, 3 is not known
    assert found.num_undetermined.tolist() == [1, 0]


def test_classes_that_the_shift_takes_for_one_count_as_one_unless_the_fit_tells_them_apart():
    groups = [[1, 3], [2]]
    merged, apart = (reference_axis("imagenet", LABELS, TOP5, groups, merged=value) for value in (True, False))
    assert merged.num_samples == apart.num_samples == 5
    assert merged.num_correct.tolist() == [2, 4]  # second row: image 3's best is class 3, of the other group
    assert apart.num_correct.tolist() == [2, 4]
    only_one = [[1, 2, 3]]
    assert reference_axis("imagenet", LABELS, TOP5, only_one).num_correct.tolist() == [4, 5]
    assert reference_axis("imagenet", LABELS, TOP5, only_one, merged=False).num_correct.tolist() == [2, 4]


def test_without_a_restriction_it_is_the_accuracy_on_all():
    found = reference_axis("imagenet", LABELS, TOP5, None)
    assert (found.num_samples, found.num_classes) == (6, 4)
    assert found.num_correct.tolist() == (TOP5[:, :, 0] == LABELS).sum(axis=1).tolist() == [0, 5]
    assert found.num_undetermined.tolist() == [0, 0]


def test_the_axis_is_the_accuracy_of_the_restricted_logits():
    """Against logits that are cut to the classes, wherever five classes tell; the others are counted."""
    rng = np.random.default_rng(0)
    labels = rng.integers(40, size=3000)
    logits = rng.normal(size=(3000, 40)) + 2 * (np.arange(40) == labels[:, None])
    top5 = np.argsort(-logits, axis=1)[None, :, :5]
    kept = np.arange(0, 40, 3)
    inside = np.isin(labels, kept)
    exact = (kept[logits[inside][:, kept].argmax(axis=1)] == labels[inside]).sum()
    found = reference_axis("imagenet", labels, top5, [[label] for label in kept])
    assert 0 < found.num_undetermined[0] < 0.2 * found.num_samples
    assert found.num_correct[0] <= exact <= found.num_correct[0] + found.num_undetermined[0]


def test_what_is_not_known_of_the_axis_bounds_effective_robustness_from_below():
    fit = Fit("straight", (Piece(1.0, 0.0),))
    found = effective_robustness(fit, axis(50, 36, 50, undetermined=0), [shift_value(0.0, 0.8), shift_value(1.0, 0.9)])
    zero_shot, finetuned = found.points
    assert zero_shot.reference == pytest.approx(0.72)
    assert zero_shot.effective_robustness == pytest.approx(zero_shot.lowest) == pytest.approx(8.0)
    assert zero_shot.reference_interval.low < 0.72 < zero_shot.reference_interval.high
    # All right: the logit would be infinite.
    assert finetuned.reference == 1.0
    assert finetuned.predicted == pytest.approx(1.0, abs=1e-5)
    found = effective_robustness(fit, axis(50, 36, undetermined=2), [shift_value(0.0, 0.8)])
    assert (found.points[0].undetermined, found.points[0].lowest) == (pytest.approx(0.04), pytest.approx(4.0))


def test_all_wrong_is_finite_too():
    found = effective_robustness(published_fits()["imagenet_v2"], axis(10, 0), [shift_value(0.0, 0.1)])
    assert 0 <= found.at(0.0).predicted < 1e-4
    assert found.at(0.0).extrapolated


def test_a_reference_without_samples_of_the_classes_gives_none():
    empty = reference_axis("imagenet", LABELS, TOP5, [[77]])
    assert effective_robustness(Fit("x", (Piece(1.0, 0.0),)), empty, [shift_value(0.0, 0.1)]) is None


def test_points_outside_the_fitted_range_are_flagged_as_far_as_it_is_known():
    fit = Fit("x", (Piece(1.0, 0.0),), fitted_low=0.55, fitted_high=0.8)
    assert [fit.extrapolates(at) for at in (0.5, 0.55, 0.7, 0.8, 0.81)] == [True, False, False, False, True]
    assert Fit("x", (Piece(1.0, 0.0),)).extrapolates(0.01) is None


def test_above_the_models_that_are_known_it_is_not_known_whether_a_point_is_extrapolated():
    v2, a = published_fits()["imagenet_v2"], published_fits()["imagenet_a"]
    assert [v2.extrapolates(at) for at in (0.54, 0.56, 0.99)] == [True, None, None]
    # ResNet-50, where the line breaks, was fitted; so were models above it, but which was the best is not on record.
    assert [a.extrapolates(at) for at in (0.7, 0.9, 0.9186, 0.93)] == [True, False, False, None]


def models_on_a_line(count, *, noise=0.0, slope=0.8, intercept=-0.5):
    rng = np.random.default_rng(0)
    reference = np.linspace(0.55, 0.85, count)
    shift = expit(slope * logit(reference) + intercept + noise * rng.normal(size=count))
    return [StandardModel(float(x), float(y)) for x, y in zip(reference, shift, strict=True)]


def test_the_line_of_ones_own_models_is_found_again():
    fit = fit_models("pacs", models_on_a_line(8))
    (piece,) = fit.pieces
    assert (piece.slope, piece.intercept) == (pytest.approx(0.8), pytest.approx(-0.5))
    assert (piece.r2, piece.num_models) == (pytest.approx(1.0), 8)
    assert (fit.fitted_low, fit.fitted_high) == (pytest.approx(0.55), pytest.approx(0.85))
    assert fit.band[0].low == pytest.approx(fit.band[0].predicted)  # no noise, no band


def test_the_band_holds_the_line_and_is_narrowest_in_the_middle():
    band = fit_models("pacs", models_on_a_line(30, noise=0.2)).band
    assert all(point.low < point.predicted < point.high for point in band)
    widths = [logit(point.high) - logit(point.low) for point in band]
    assert min(widths) == min(widths[10:30])
    assert [point.reference for point in band] == sorted(point.reference for point in band)


def test_models_without_a_logit_or_below_the_bound_are_left_out():
    models = [*models_on_a_line(6), StandardModel(0.7, 0.0), StandardModel(1.0, 0.9), StandardModel(0.2, 0.9)]
    fit = fit_models("pacs", models, min_reference=0.5)
    assert fit.pieces[0].num_models == 6
    assert fit.pieces[0].slope == pytest.approx(0.8)


def test_fewer_than_five_models_are_refused():
    with pytest.raises(UserError, match="at least 5 of them, there are 4"):
        fit_models("pacs", models_on_a_line(4))


def test_models_of_one_reference_accuracy_are_refused():
    with pytest.raises(UserError, match="same reference accuracy"):
        fit_models("pacs", [StandardModel(0.7, 0.1 * number) for number in range(1, 7)])


def test_models_are_read_from_csv_and_from_json(tmp_path):
    table = tmp_path / "models.csv"
    table.write_text("model,dataset,reference,shift\nresnet50,sketch,0.76,0.24\nvit,sketch,0.81,0.3\nvit,v2,0.81,0.7\n")
    listed = tmp_path / "models.json"
    listed.write_text(json.dumps([{"dataset": "sketch", "reference": 0.76, "shift": 0.24}]))
    assert read_models(str(table)) == {
        "sketch": [StandardModel(0.76, 0.24), StandardModel(0.81, 0.3)],
        "v2": [StandardModel(0.81, 0.7)],
    }
    assert read_models(str(listed)) == {"sketch": [StandardModel(0.76, 0.24)]}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("models.csv", "dataset,reference\nsketch,0.5\n", "model 1 has no shift"),
        ("models.csv", "dataset,reference,shift\nsketch,76.1,24\n", "reference is '76.1'. Write a fraction"),
        ("models.json", "{", "is not JSON"),
        ("models.json", "{}", "list of objects"),
    ],
)
def test_a_file_of_models_that_cannot_be_used_is_a_sentence(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_models(str(tmp_path / name))


def test_a_fit_that_is_neither_published_nor_a_file_is_refused_before_anything_runs():
    sentence = r"data.datasets.v2.robustness_fit: imagenet_v3 is neither .* Did you mean imagenet_v2"
    with pytest.raises(UserError, match=sentence):
        describe_dataset("v2", DatasetSpec(robustness_fit="imagenet_v3"))


def test_a_file_without_models_of_the_dataset_is_a_sentence(tmp_path):
    (tmp_path / "models.csv").write_text("dataset,reference,shift\nsketch,0.5,0.4\n")
    with pytest.raises(UserError, match=r"has no models of cartoon, only of sketch: add rows"):
        own_fit("cartoon", str(tmp_path / "models.csv"))


def test_models_of_nearly_one_reference_accuracy_have_no_line():
    models = [StandardModel(0.7 + 1e-9 * index, 0.4 + 0.01 * index) for index in range(6)]
    with pytest.raises(UserError, match="all 6 models have nearly the same reference accuracy"):
        fit_models("pacs", models)
