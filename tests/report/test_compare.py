"""Comparing runs, on numbers that are made up so that the answers can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from browser import opened
from made_up import dataset, interval, statistics

from wiseft_dist.config import DatasetSpec, RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.predictions import Predictions
from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.report.compare.cautions import cautions
from wiseft_dist.report.compare.combined import difference_interval, mean_interval
from wiseft_dist.report.compare.contents import page_of_runs
from wiseft_dist.report.compare.differences import Difference, _of_average, differences, of_dataset
from wiseft_dist.report.compare.figure import runs_chart, zero_shot_groups
from wiseft_dist.report.compare.given import Compared, distinct_names
from wiseft_dist.report.compare.pairing import Model, Pairs, SameSamples, same_samples
from wiseft_dist.report.compare.settings import differing_settings
from wiseft_dist.report.compare.shared import Shared, narrowed, shared_datasets
from wiseft_dist.report.compare.standings import standings
from wiseft_dist.report.compare.tables import accuracy_sections, difference_sections
from wiseft_dist.report.page.charts import GREY
from wiseft_dist.report.page.render import render

TOP1 = DatasetSpec()
FIRST, SECOND = Model("a", 0.5), Model("b", 0.5)


def compared(name: str = "a", **changes: object) -> Compared:
    return Compared(name, f"runs/{name}", statistics(**changes))


def with_counts(name: str, photo: tuple[int, int, int], sketch: tuple[int, int, int]) -> Compared:
    """A run with a reference and one shift, of 1,000 samples each."""
    datasets = {"photo": dataset("photo", photo, role="reference"), "sketch": dataset("sketch", sketch)}
    averages = tuple(
        replace(entry, value=count / 1000) for entry, count in zip(statistics().shift_average, sketch, strict=True)
    )
    return compared(name, datasets=datasets, shifts=("sketch",), shift_average=averages)


def said(classes: list[int], keys: str = "abcdefghij", labels: int = 0) -> Predictions:
    """What one model said of a few samples; class 0 is right."""
    nothing = np.empty((1, 0), dtype=np.float32)
    return Predictions(
        tuple(keys),
        np.arange(len(keys)),
        np.full((len(keys), 1), labels),
        np.array([classes], dtype=np.int32),
        np.empty((1, 0, 5), dtype=np.int32),
        *[nothing] * 5,
    )


def test_the_paired_difference_of_ten_samples_is_the_one_worked_out_by_hand():
    """b is right on four samples more, and on no fewer: its gain on resamples is Binomial(10, 0.4), in tenths."""
    same = same_samples("tiny", TOP1, [FIRST, SECOND], [said([0] * 4 + [1] * 6), said([0] * 8 + [1] * 2)])
    assert same is not None
    found, _ = differences_on(same)
    assert found.value == pytest.approx(40.0)
    assert (found.interval.low, found.interval.high) == (pytest.approx(10.0), pytest.approx(70.0))
    assert found.test is not None
    assert (found.test.num_only_first, found.test.num_only_second, found.test.p_value) == (4, 0, 0.125)
    assert found.verdict == "better"


def test_samples_are_paired_by_key_whatever_their_order_and_those_that_one_run_skipped_are_left_out():
    in_order = said([0, 0, 1, 0, 1, 1], "abcdef")
    backwards_without_b = said([1, 0, 0, 1, 0], "fedca")
    same = same_samples("tiny", TOP1, [FIRST, SECOND], [in_order, backwards_without_b])
    assert same is not None  # a, c, d, e, f
    assert same.correct[0].tolist() == [True, False, True, False, False]
    assert same.correct[1].tolist() == [True, False, True, True, False]
    assert same.values.tolist() == [0.4, 0.6]


def test_runs_without_a_common_sample_are_not_paired():
    assert same_samples("tiny", TOP1, [FIRST, SECOND], [said([0], "a"), said([0], "b")]) is None


def differences_on(same: SameSamples) -> tuple[Difference, ...]:
    """Of b from a: at the chosen alpha, of which the samples are known, and fine-tuned."""
    return of_dataset("photo", [compared("a"), compared("b")], Pairs(same, {}))


def test_holm_counts_the_paired_comparisons_of_a_dataset_alone():
    models = [FIRST, SECOND]
    same = same_samples("tiny", TOP1, models, [said([0] * 2 + [1] * 8), said([0] * 10)])
    chosen, finetuned = differences_on(same)
    assert chosen.test is not None and chosen.test.p_value == pytest.approx(2 * 0.5**8)
    assert chosen.adjusted_p_value == pytest.approx(2 * 0.5**8)  # fine-tuned was not paired: it counts for nothing
    assert finetuned.test is None and finetuned.reason == "no such cells"


def test_the_paired_average_is_of_the_samples_that_both_have_as_its_interval_is():
    """The reports of a and b have the same numbers; where neither skipped a sample, b is right more often."""
    names = statistics().averaged_shifts
    same = same_samples("tiny", TOP1, [FIRST, SECOND], [said([0] * 4 + [1] * 6), said([0] * 8 + [1] * 2)])
    lost = same_samples("tiny", TOP1, [FIRST, SECOND], [said([0] * 4 + [1] * 6), said([0] * 3 + [1] * 7)])
    pairs = dict(zip(names, (Pairs(same, {}), Pairs(lost, {})), strict=True))
    chosen, finetuned = _of_average([compared("a"), compared("b")], pairs)
    assert chosen.value == pytest.approx(15.0)  # the mean of 40 and -10
    assert chosen.interval.low < 15 < chosen.interval.high
    assert (finetuned.value, finetuned.reason) == (0.0, "not every shift is paired")


def test_the_interval_of_a_difference_follows_from_those_of_both_numbers():
    found = difference_interval(0.7, Interval(0.6, 0.8, "bootstrap"), 0.5, Interval(0.47, 0.54, "bootstrap"))
    assert found.low == pytest.approx(0.2 - math.hypot(0.1, 0.04))
    assert found.high == pytest.approx(0.2 + math.hypot(0.1, 0.03))
    assert (found.low, found.high) == (pytest.approx(0.0922967), pytest.approx(0.3044031))


def test_the_interval_of_a_mean_is_narrower_than_those_of_its_numbers():
    found = mean_interval([0.5, 0.7], [Interval(0.4, 0.6, "bootstrap"), Interval(0.6, 0.8, "bootstrap")])
    assert (found.low, found.high) == (pytest.approx(0.5292893), pytest.approx(0.6707107))


def test_the_highest_number_is_best_only_where_no_other_interval_reaches_it():
    clear = [(0.8, interval(0.75, 0.85)), (0.6, interval(0.55, 0.65)), None]
    assert standings(clear) == ["best", "", ""]
    close = [(0.8, interval(0.75, 0.85)), (0.74, interval(0.69, 0.79)), (0.6, interval(0.55, 0.65))]
    assert standings(close) == ["highest, within noise", "within noise", ""]


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_numbers_that_are_alike_or_unknown_have_no_best(value):
    assert standings([(value, interval(0.4, 0.6)), (value, interval(0.4, 0.6))]) == ["", ""]


def test_a_number_whose_interval_is_not_known_is_never_best():
    unknown = interval(float("nan"), float("nan"))
    assert standings([(0.9, unknown), (0.2, interval(0.1, 0.3))]) == ["highest, within noise", "within noise"]


def test_runs_are_compared_on_the_datasets_that_they_share_and_the_average_is_over_these():
    other = compared("b", datasets={n: d for n, d in statistics().datasets.items() if n != "fmow"}, shifts=("sketch",))
    runs = [compared("a"), other]
    shared = shared_datasets(runs)
    assert shared == Shared(("photo", "sketch"), ("fmow is left out: b has no results on it.",))
    first, _ = narrowed(runs, shared)
    assert first.statistics.shifts == ("sketch",)
    assert [entry.value for entry in first.statistics.shift_average] == [0.6, 0.65, 0.5]
    assert first.statistics.shift_average[0].interval.low == pytest.approx(0.58)
    assert "oracle" not in [choice.name for choice in first.statistics.choices]


def test_an_average_over_the_same_shifts_stays_as_the_report_has_it():
    runs = [compared("a"), compared("b")]
    assert narrowed(runs, shared_datasets(runs))[0].statistics.shift_average == statistics().shift_average


def test_a_dataset_that_is_measured_otherwise_or_is_no_shift_elsewhere_is_left_out():
    datasets = statistics().datasets
    other = compared("b", datasets=datasets | {"fmow": replace(datasets["fmow"], metric="top1", group=None)})
    assert shared_datasets([compared("a"), other]).left_out == (
        "fmow is left out: it is measured by worst region in a, measured by top-1 in b.",
    )
    third = compared("c", datasets=datasets | {"photo": replace(datasets["photo"], role="shift")})
    assert shared_datasets([compared("a"), third]).left_out == (
        "photo is left out: it is the reference in a, a shift in c.",
    )


def test_runs_without_a_common_dataset_get_a_sentence():
    datasets = {"road": dataset("road", (1, 2, 3), role="reference")}
    other = compared("b", datasets=datasets, reference="road", shifts=(), shift_average=())
    with pytest.raises(UserError, match=r"share no dataset.*photo is left out: b has no results on it\."):
        page_of_runs([compared("a"), other])


def test_the_figure_has_a_curve_a_run_and_one_zero_shot_point_where_the_numbers_are_the_same():
    runs = [
        with_counts("a", (700, 800, 850), (600, 650, 500)),
        with_counts("b", (700, 810, 870), (600, 660, 400)),
        with_counts("c", (100, 800, 850), (60, 650, 500)),
    ]
    assert [[run.name for run in group] for group in zero_shot_groups(runs)] == [["a", "b"], ["c"]]
    chart = runs_chart(runs)
    curves = [line for line in chart.lines if line.style == "curve"]
    assert [line.name for line in curves] == ["a", "b", "c"]
    assert [(point.x, point.y) for point in curves[1].points] == [(70.0, 60.0), (81.0, 66.0), (87.0, 40.0)]
    squares = [line for line in chart.lines if line.shape == "square" and line.points]
    assert [(line.colour, line.points[0].x) for line in squares] == [(GREY, 70.0), (2, 10.0)]
    assert "a, b, alpha 0" in squares[0].points[0].text
    assert chart.scales == ("linear", "logit")


def test_zero_shot_models_that_are_as_often_right_but_not_as_sure_are_two():
    runs = [
        compared("a"),
        sure(compared("b"), nll=0.70),
        sure(compared("c"), ece=0.4),
        sure(compared("d"), nll=0.76541),
    ]
    assert [[run.name for run in group] for group in zero_shot_groups(runs)] == [["a", "d"], ["b"], ["c"]]
    unknown = [sure(compared(name), nll=float("nan")) for name in "xy"]
    assert [len(group) for group in zero_shot_groups(unknown)] == [2]


def sure(run: Compared, **changes: float) -> Compared:
    """With other numbers at every alpha."""
    given = run.statistics
    datasets = {
        name: replace(each, alphas=tuple(replace(entry, **changes) for entry in each.alphas))
        for name, each in given.datasets.items()
    }
    return replace(run, statistics=replace(given, datasets=datasets))


def test_a_line_is_of_all_runs_only_where_all_of_them_have_a_zero_shot_model():
    first, second, third = (with_counts(name, (700, 800, 850), (600, 650, 500)) for name in "abc")
    third = replace(third, statistics=replace(third.statistics, alphas=(0.5, 1.0)))
    *_, zero_shot = accuracy_sections([first, second, third])
    assert [row.name for row in zero_shot.rows] == ["a, b"]


def test_each_table_tells_the_best_from_what_may_be_noise():
    runs = [with_counts("a", (700, 800, 850), (600, 650, 500)), with_counts("b", (700, 900, 850), (600, 660, 500))]
    chosen, finetuned, zero_shot = accuracy_sections(runs)
    assert [row.name for row in chosen.rows] == ["a", "b"]
    photo, average, _ = (chosen.rows[1].cells[2 + column] for column in range(3))
    assert (photo.text, photo.value, photo.small) == ("90.00", 90.0, "88.00 to 92.00, best")
    assert average.small.endswith("highest, within noise")
    assert [row.name for row in zero_shot.rows] == ["all runs"]
    assert not any("best" in cell.small or "noise" in cell.small for row in finetuned.rows for cell in row.cells)


def test_without_cells_a_difference_is_told_to_be_unpaired_and_its_interval_is_the_wide_one():
    runs = [with_counts("a", (700, 800, 850), (600, 650, 500)), with_counts("b", (700, 900, 850), (600, 660, 500))]
    found = differences(runs)
    photo = next(each for each in found if (each.dataset, each.model) == ("photo", "chosen"))
    assert photo.value == pytest.approx(10.0)
    assert (photo.interval.low, photo.interval.high) == (pytest.approx(7.1715729), pytest.approx(12.8284271))
    assert (photo.verdict, photo.test, photo.reason) == ("better", None, "only its report is there")
    section, _ = difference_sections(runs, found)
    assert [row.name for row in section.rows] == ["b, shift average", "b, photo", "b, sketch"]
    assert section.rows[1].cells[0].small == "(+7.17 to +12.83)"
    assert section.rows[1].cells[-1].text == "unpaired"
    told = cautions(runs, Shared((), ()), found)
    assert told == ("b is not paired with a on photo, sketch: only its report is there.",)


def test_runs_of_other_samples_intervals_choices_or_alphas_are_named():
    other = statistics()
    photo = replace(other.datasets["photo"], num_samples=999, num_skipped=0)
    other = replace(other, datasets=other.datasets | {"photo": photo}, choices=other.choices[:1])
    told = cautions([compared("a"), Compared("b", "b", other)], Shared((), ()), ())
    assert told == (
        "photo has 1,000 samples in a; 999 samples in b: the runs are not measured on the same samples.",
        "The reported alpha was chosen on held-out samples in a; fixed before in b: what was chosen by validation is "
        "not like what was fixed.",
    )


def config(**finetune: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": f"/home/alice/runs/{finetune}",
            "model": {"architecture": "ViT-B-32"},
            "data": {"train": finetune.pop("train", "/home/alice/data/train")},
            "finetune": finetune,
        }
    )


def test_only_settings_that_differ_are_shown_those_of_the_weights_first_and_no_home():
    runs = [
        replace(compared("a"), config=config(epochs=5, log_every=10)),
        replace(compared("b"), config=config(epochs=10, log_every=20, train="/home/bob/data/train")),
        compared("c"),
    ]
    found = {setting.key: (setting.values, setting.decides_weights) for setting in differing_settings(runs)}
    assert found == {
        "data.train": (("~/data/train", "~/data/train", "–"), True),
        "finetune.epochs": (("5.0", "10.0", "–"), True),
        "finetune.log_every": (("10", "20", "–"), False),
    }
    assert list(found)[-1] == "finetune.log_every"


def test_runs_are_called_by_as_much_of_their_places_as_tells_them_apart():
    assert distinct_names(["/runs/a", "/runs/b/"]) == ("a", "b")
    assert distinct_names(["/x/one/run", "s3://bucket/two/run"]) == ("one/run", "two/run")


def test_twelve_runs_make_a_page_with_twelve_curves_whose_names_are_only_text(tmp_path):
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', *(f"lr={n}e-05" for n in range(10))]
    runs = [with_counts(name, (700, 800 + 9 * n, 850), (600, 650, 500 - n)) for n, name in enumerate(names)]
    file = tmp_path / "page.html"
    file.write_text(render(page_of_runs(runs)), encoding="utf-8")
    assert file.stat().st_size < 1_000_000
    with opened(file) as page:
        figure = page.locator(".lead svg[role=img]:visible").first
        assert figure.locator("title").first.text_content()
        legend = page.locator(".lead .legend").first.locator("li").all_text_contents()
        assert [text.strip() for text in legend][:12] == names
        assert page.locator("h1").inner_text() == "12 runs compared"
        headings = page.locator("#at-the-chosen-alpha tbody th").all_inner_texts()
        assert headings == names
        page.locator("#at-the-chosen-alpha thead th button").nth(3).click()
        values = [
            float(text.split()[0]) for text in page.locator("#at-the-chosen-alpha td:nth-child(4)").all_inner_texts()
        ]
        assert values in (sorted(values), sorted(values, reverse=True))
        assert values[0] != values[-1]
