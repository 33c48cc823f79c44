"""Statistics as charts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_up import alpha_statistics, dataset, robustness, statistics, with_dataset, without_held_out

from wiseft_dist.evaluate.statistics.metrics.calibration import ReliabilityBin
from wiseft_dist.evaluate.statistics.robustness import BandPoint
from wiseft_dist.evaluate.statistics.selection import Choice
from wiseft_dist.evaluate.statistics.statistics import ShiftAverage, Statistics
from wiseft_dist.report.curves import dataset_charts, trade_off
from wiseft_dist.report.page.charts import Chart, Line
from wiseft_dist.report.sections.calibration import reliability_chart
from wiseft_dist.report.sections.selection import selection_chart


def line(chart: Chart, name: str) -> Line:
    (found,) = (each for each in chart.lines if each.name.startswith(name))
    return found


def places(found: Line) -> list[tuple[float, float]]:
    return [(round(point.x, 3), round(point.y, 3)) for point in found.points]


def top1_only() -> Statistics:
    """One shift, on which standard models are known and the reference axis is the reference itself."""
    given = statistics(shifts=("sketch",))
    average = tuple(ShiftAverage(each.alpha, each.value, each.interval) for each in given.datasets["sketch"].alphas)
    points = tuple(
        replace(point, reference=given.datasets["photo"].at(point.alpha).value) for point in robustness().points
    )
    return replace(given, shift_average=average, robustness={"sketch": replace(robustness(), points=points)})


def test_the_papers_figure_has_a_point_for_each_alpha_with_both_intervals() -> None:
    chart = trade_off(statistics())
    curve = line(chart, "ensembles of weights")
    assert places(curve) == [(70.0, 35.555), (80.0, 43.61), (85.0, 33.885)]
    assert [point.label for point in curve.points] == ["0", "0.5", "1"]
    assert curve.points[1].x_range == pytest.approx((78.0, 82.0))
    assert curve.points[1].y_range == pytest.approx((30.0, 45.0))
    assert curve.points[1].text == "alpha 0.5: photo top-1 80.00 %, average over shifts 43.61 %"
    assert chart.scales == ("linear", "logit")


def test_the_models_worth_naming_are_marked() -> None:
    marks = {each.name: places(each) for each in trade_off(statistics()).lines if each.style == "mark"}
    assert marks == {
        "zero-shot (0)": [(70.0, 35.555)],
        "fine-tuned (1)": [(85.0, 33.885)],
        "ensemble, fixed (0.5)": [(80.0, 43.61)],
        "ensemble, chosen on ID-val (0.5)": [(80.0, 43.61)],
    }


def test_what_mixing_the_ends_accuracies_would_give_is_straight_in_accuracy_on_every_scale() -> None:
    straight = line(trade_off(statistics()), "straight line")
    assert len(straight.points) == 41
    assert places(straight)[20] == (77.5, 34.72)  # half way between 70 and 85, and between 35.555 and 33.885
    assert straight.style == "dotted"


@pytest.mark.parametrize(
    ("changes", "labels", "first"),
    [
        ({"shifts": (), "shift_average": ()}, ("alpha", "photo top-1 (%)"), (0.0, 70.0)),
        ({"reference": None}, ("alpha", "average over shifts (%)"), (0.0, 35.555)),
    ],
)
def test_without_a_trade_off_accuracy_is_drawn_over_alpha(changes, labels, first) -> None:
    chart = trade_off(replace(statistics(), **changes))
    assert (chart.x_label, chart.y_label) == labels
    assert places(line(chart, "ensembles of weights"))[0] == first
    assert chart.scales == ("linear",)
    assert "alpha 0.5: " in line(chart, "ensembles of weights").points[1].text


def test_an_end_that_has_no_number_is_left_out_and_with_it_the_straight_line() -> None:
    given = statistics()
    first, *others = given.shift_average
    chart = trade_off(replace(given, shift_average=(replace(first, value=math.nan), *others)))
    assert places(line(chart, "ensembles of weights")) == [(80.0, 43.61), (85.0, 33.885)]
    assert not [each for each in chart.lines if each.name.startswith(("straight", "zero-shot"))]


def test_where_no_alpha_has_a_number_there_are_no_other_axes_to_choose() -> None:
    given = statistics()
    unknown = tuple(replace(each, value=math.nan) for each in given.shift_average)
    chart = trade_off(replace(given, shift_average=unknown))
    assert not any(each.points for each in chart.lines)
    assert chart.scales == ("linear",)


def test_logit_axes_are_not_offered_where_a_value_has_no_logit() -> None:
    given = statistics()
    first, *others = given.shift_average
    chart = trade_off(replace(given, shift_average=(replace(first, value=0.0), *others)))
    assert chart.scales == ("linear",)


def test_ensembles_of_outputs_are_drawn_where_every_dataset_of_the_figure_has_them() -> None:
    given = statistics()
    for name, correct in (("photo", 790), ("sketch", 640), ("fmow", 200)):
        given = with_dataset(given, name, output_space=(alpha_statistics(0.5, correct),))
    assert places(line(trade_off(given), "ensembles of outputs")) == [(79.0, 42.0)]
    only_one = with_dataset(statistics(), "photo", output_space=(alpha_statistics(0.5, 790),))
    assert not [each for each in trade_off(only_one).lines if each.name == "ensembles of outputs"]


def test_the_line_of_standard_models_is_in_the_figure_of_a_run_with_one_shift_on_the_same_axis() -> None:
    fit = line(trade_off(top1_only()), "standard models")
    # expit(0.9232 logit(x) - 0.4977), at the first point that is drawn.
    x, y = fit.points[0].x / 100, fit.points[0].y / 100
    assert math.log(y / (1 - y)) == pytest.approx(0.9232 * math.log(x / (1 - x)) - 0.4977)
    assert x < 0.7 and fit.style == "dashed"
    # In the other run the shift's classes are some of the reference's: another axis.
    other = replace(top1_only(), robustness={"sketch": robustness()})
    assert not [each for each in trade_off(other).lines if each.name == "standard models"]


def test_each_dataset_has_a_small_figure_with_its_own_line() -> None:
    charts = {chart.title: chart for chart in dataset_charts(statistics())}
    assert list(charts) == ["photo", "Sketches", "fmow"]
    assert all(chart.is_small for chart in charts.values())
    assert (charts["photo"].x_label, charts["photo"].scales) == ("alpha", ("linear",))
    assert charts["Sketches"].x_label == "photo on 200 classes (%)"
    assert places(line(charts["Sketches"], "ensembles"))[0] == (70.0, 50.0)
    assert line(charts["Sketches"], "standard models").style == "dashed"
    assert places(line(charts["fmow"], "ensembles")) == [(70.0, 11.11), (80.0, 22.22), (85.0, 17.77)]
    assert not [each for each in charts["fmow"].lines if each.name == "standard models"]


def test_the_line_is_dotted_where_no_standard_model_was_as_good() -> None:
    fit = replace(robustness().fit, fitted_high=0.70)
    chart = dataset_charts(replace(statistics(), robustness={"sketch": replace(robustness(), fit=fit)}))[1]
    known, beyond = (each for each in chart.lines if each.name.startswith("standard models"))
    assert (known.style, beyond.style) == ("dashed", "dotted")
    assert known.points[-1].x <= 70.0 < beyond.points[0].x
    assert beyond.name == "standard models, extrapolated"


def test_a_fit_of_ones_own_has_its_band() -> None:
    own = robustness()
    band = tuple(BandPoint(reference / 100, 0.45, 0.40, 0.50) for reference in (60, 70, 80))
    own = replace(own, fit=replace(own.fit, band=band))
    chart = dataset_charts(replace(statistics(), robustness={"sketch": own}))[1]
    low = line(chart, "their 95 % band")
    assert places(low) == [(70.0, 40.0)]  # the other points of the band lie outside the figure


def test_the_choice_of_alpha_is_drawn_with_the_oracle_that_it_is_held_against() -> None:
    chart = selection_chart(statistics())
    assert chart is not None
    assert places(line(chart, "held-out piece, top-1")) == [(0.0, 71.0), (0.5, 86.0), (1.0, 85.0)]
    assert places(line(chart, "chosen (0.5)")) == [(0.5, 86.0)]
    # The mean of 80 and 43.61.
    assert places(line(chart, "mean of reference and shift average"))[1] == (0.5, 61.805)
    assert places(line(chart, "oracle (1)")) == [(1.0, 59.442)]
    assert selection_chart(without_held_out(statistics())) is None


def test_reliability_curves_leave_out_empty_bins() -> None:
    bins = (ReliabilityBin(0.0, 0.5, 0, None, None), ReliabilityBin(0.5, 1.0, 40, 0.8, 0.65))
    given = dataset("photo", (700, 800, 850), role="reference")
    alphas = tuple(replace(each, reliability=bins) for each in given.alphas)
    given = replace(given, alphas=alphas)
    chart = reliability_chart(statistics(), given)
    assert [each.name for each in chart.lines] == ["as sure as right", "zero-shot", "chosen", "fine-tuned"]
    assert [each.colour for each in chart.lines[1:]] == [1, 4, 2]
    assert places(line(chart, "chosen")) == [(80.0, 65.0)]
    assert line(chart, "chosen").points[0].text == "chosen, confidence 50 to 100 %: 40 samples, 65.00 % right"


def test_a_model_has_its_colour_in_every_figure() -> None:
    given = dataset("photo", (700, 800, 850), role="reference")
    only_ends = replace(statistics(), chosen=None, choices=(), alphas=(0.0, 1.0))
    assert {each.name: each.colour for each in reliability_chart(only_ends, given).lines[1:]} == {
        "zero-shot": 1,
        "fine-tuned": 2,
    }
    fixed = replace(statistics(), choices=(Choice("fixed", 0.5, False),))
    assert line(reliability_chart(fixed, given), "chosen").colour == 3
