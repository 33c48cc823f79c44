"""Charts: where things stand on the axes, and that labels stand on nothing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from made_up_page import BAD_NAMES, NUM_ALPHAS, SCRIPT, losses, trade_off

from wiseft_dist.printable import printable
from wiseft_dist.report.page.chart_numbers import numbers_of
from wiseft_dist.report.page.charts import Chart, Line, Point
from wiseft_dist.report.page.drawing import svg, symbol
from wiseft_dist.report.page.labels import Box, Wanted, place
from wiseft_dist.report.page.scales import axis, tick_text


def classes(drawing: ET.Element, name: str) -> list[ET.Element]:
    return [each for each in drawing.iter() if name in each.get("class", "").split()]


def drawn(chart: Chart, scale: str = "linear", **more: str) -> ET.Element:
    return ET.fromstring(svg(chart, scale, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ((60.0, 66.0), "linear", (60, 61, 62, 63, 64, 65, 66)),
        ((0.0, 1.0), "linear", (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ((-0.003, 0.004), "linear", (-0.003, -0.002, -0.001, 0, 0.001, 0.002, 0.003, 0.004)),
        ((1.0, 99.0), "logit", (2, 5, 20, 50, 80, 95, 98)),
        ((56.0, 66.0), "logit", (56, 58, 60, 62, 64, 66)),
        ((0.01, 5.0), "log", (0.01, 0.1, 1)),
        ((1.2, 1.9), "log", (1.2, 1.4, 1.6, 1.8, 2.0)),
        ((50.0,), "linear", (48, 49, 50, 51, 52)),
        ((0.5, 0.5), "linear", (0.48, 0.49, 0.5, 0.51, 0.52)),
        ((0.0,), "linear", (-0.04, -0.02, 0, 0.02, 0.04)),
        ((1e-5,), "linear", (9.6e-6, 9.8e-6, 1e-5, 1.02e-5, 1.04e-5)),
        ((1e-20, 2e-20), "linear", (1e-20, 1.2e-20, 1.4e-20, 1.6e-20, 1.8e-20, 2e-20)),
        ((1e300, -1e308, 1.7e308), "linear", (-1e300, -5e299, 0, 5e299, 1e300)),
        ((50.0,), "logit", (49, 49.5, 50, 50.5, 51)),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(values, scale, ticks):
    found = axis(values, scale, 0, 100, 8)
    assert found.ticks == pytest.approx(ticks)
    places = [found.at(tick) for tick in found.ticks]
    assert all(0 <= a < b <= 100 for a, b in pairwise(places))


def test_a_logit_scale_spreads_both_ends_alike():
    found = axis((2.0, 98.0), "logit", 0, 100, 8)
    assert found.at(50) == pytest.approx(50)
    assert found.at(10) - found.at(5) == pytest.approx(found.at(95) - found.at(90))
    assert found.at(99) - found.at(98) > found.at(51) - found.at(50)


@pytest.mark.parametrize("values", [(), (math.nan, math.inf), (0.0, 100.0), (1e-9,), (1e-320,), (1e300, 1e-300)])
@pytest.mark.parametrize("scale", ["linear", "logit", "log"])
def test_an_axis_of_few_or_extreme_values_is_one_all_the_same(values, scale):
    found = axis(values, scale, 0, 100, 8)
    for value in values:
        if math.isfinite(value):
            assert 0 <= found.at(value) <= 100
    assert all(math.isfinite(found.at(tick)) for tick in found.ticks)
    assert bool(found.ticks) == any(map(math.isfinite, values))


def test_ticks_are_written_short():
    assert [tick_text(value) for value in (50.0, 0.30000000000000004, -2.5, 1e-5, 1200001.0)] == [
        *("50", "0.3", "−2.5", "1e−05", "1200001"),
    ]


def test_a_point_stands_where_its_numbers_say():
    chart = Chart("T", "x", "y", (Line("l", (Point(0, 0), Point(5, 5), Point(10, 20))),))
    dots = classes(drawn(chart), "point")
    xs, ys = ([float(dot.get(name, "")) for dot in dots] for name in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[0] - ys[1] == pytest.approx((ys[1] - ys[2]) / 3, abs=0.11)
    assert ys[0] > ys[1] > ys[2]  # y of a drawing grows downwards


@pytest.mark.parametrize("scale", ["linear", "logit"])
@pytest.mark.parametrize("size", ["wide", "narrow", "small"])
def test_the_figure_has_its_points_marks_bars_and_lines(scale, size):
    drawing = drawn(trade_off(), scale, size=size)
    assert drawing.get("role") == "img"
    assert len(classes(drawing, "point")) == NUM_ALPHAS
    assert len(classes(drawing, "mark")) == 3
    assert len({mark.get("class") for mark in classes(drawing, "mark")}) == 3
    assert classes(drawing, "bar")[0].get("d", "").count("M") == 2 * NUM_ALPHAS
    assert len(classes(drawing, "dotted")) == len(classes(drawing, "dashed")) == 1
    _, _, width, height = map(float, drawing.get("viewBox", "").split())
    for dot in classes(drawing, "point"):
        assert 0 < float(dot.get("cx", "")) < width and 0 < float(dot.get("cy", "")) < height
    assert [child.tag for child in drawing][:2] == ["title", "desc"]
    assert ("logit scale" in drawing[1].text) == (scale == "logit")


@pytest.mark.parametrize("shape", ["square", "diamond", "star"])
def test_a_mark_in_the_place_of_another_is_seen_around_it(shape):
    at = (Point(2, 3),)
    chart = Chart("T", "x", "y", (Line("l", at, "mark", 1, shape), Line("u", at, "mark", 2, "plus")))
    widths = []
    for mark in classes(drawn(chart), "mark"):
        xs = [float(pair.split()[0]) for pair in re.split("[MLZ]", mark.get("d", ""))[1:-1]]
        widths.append(max(xs) - min(xs))
    assert widths[0] > 1.25 * widths[1]
    assert chart.times_larger(chart.lines[1]) == chart.times_larger(Line("c", at)) == 1


def test_what_is_said_of_a_point_is_its_text_or_its_coordinates():
    chart = Chart(
        "T", "x", "y", (Line("loss", (Point(1, 2), Point(3, 4, "alpha 0.5: four"))), Line("", (Point(5, 6),)))
    )
    titles = [point.findtext("title") for point in classes(drawn(chart), "point")]
    assert titles == ["loss: 1, 2", "alpha 0.5: four", "5, 6"]


def test_points_that_are_no_numbers_are_left_out():
    points = (Point(1, math.nan), Point(math.inf, 1), Point(2, 3, y_range=(math.nan, 4)), Point(4, 5))
    drawing = drawn(Chart("T", "x", "y", (Line("l", points),)))
    assert len(classes(drawing, "point")) == 2
    assert "nan" not in ET.tostring(drawing, encoding="unicode")
    assert not classes(drawing, "bar")


def test_a_chart_without_points_says_so():
    drawing = drawn(Chart("T", "x", "y", (Line("l", ()),)))
    assert "no numbers" in [each.text for each in drawing.iter() if each.tag == "text"]
    assert not classes(drawing, "grid")


def test_no_label_touches_another_or_a_symbol():
    symbols = [Box(10 * n - 3, 47, 10 * n + 3, 53) for n in range(1, 40)]
    wanted = [Wanted(f"{n / 40:g}", 10 * n, 50, 11, 3) for n in range(1, 40)]
    frame = Box(0, 0, 400, 100)
    placed = place(wanted, symbols, frame)
    assert 10 < len(placed) <= 39
    for one, other in combinations([*symbols, *(each.box for each in placed)], 2):
        assert not one.touches(other)
    assert all(frame.holds(each.box) for each in placed)


def test_a_label_finds_a_place_at_the_edge_or_none():
    assert place([Wanted("0.5", 399, 50, 11, 3)], [], Box(0, 0, 400, 100))[0].box.right < 399
    assert place([Wanted("0.5", 5, 5, 11, 3)], [], Box(0, 0, 10, 10)) == []


def test_marks_have_their_labels_before_the_rest():
    strong = [each.text for each in classes(drawn(trade_off(), size="narrow"), "strong")]
    assert strong == ["0", "1", "0.45"]


def test_texts_of_a_chart_are_escaped_and_long_ones_shortened():
    for name in BAD_NAMES:
        chart = trade_off(name, x_label=name, y_label=name, description=name)
        chart = replace(chart, lines=(Line(name, (Point(1, 1, name, name), Point(2, 3))),))
        drawing = drawn(chart)  # which is well-formed
        assert not {each.tag for each in drawing.iter()} & {"script", "img"}
        assert drawing.findtext("title") == printable(name)
        assert classes(drawing, "point")[0].findtext("title") == printable(name)
    assert SCRIPT not in svg(trade_off(SCRIPT))
    assert any((each.text or "").endswith("…") for each in classes(drawn(trade_off(x_label=BAD_NAMES[-1])), "name"))


def test_the_y_axis_alone_is_logarithmic():
    linear, log = (classes(drawn(losses(), scale), "line")[0].get("d", "") for scale in ("linear", "log"))
    points = [[tuple(map(float, pair.split())) for pair in re.split("[ML]", d)[1:]] for d in (linear, log)]
    middle = len(points[0]) // 4
    xs = [each[middle][0] - each[0][0] for each in points]
    assert xs[0] == pytest.approx(xs[1], rel=0.05)
    assert points[1][middle][1] < points[0][middle][1] - 50


def test_the_numbers_of_a_chart_are_a_table():
    section = numbers_of(trade_off())
    assert section.columns == ("line", "reference top-1 (%)", "average over shifts, top-1 (%)")
    assert [row.name for row in section.rows[:2]] == ["ensembles, 0", "ensembles, 0.05"]
    assert len(section.rows) == NUM_ALPHAS + 3  # the lines to compare with are no numbers of the run
    assert [cell.value for cell in section.rows[0].cells] == [76.0, 60.0]
    assert section.rows[0].cells[1].small == "(59.4 to 60.6)"


def test_a_step_beyond_a_million_is_written_in_full():
    section = numbers_of(Chart("Loss", "step", "loss", (Line("", (Point(1234567, 0.123456789),)),)))
    assert [cell.text for cell in section.rows[0].cells] == ["1234567", "0.123457"]


def test_the_symbol_of_a_legend_is_that_of_the_line():
    assert "<circle" in symbol(Line("l", ())) and "M0 7H26" in symbol(Line("l", ()))
    assert "dotted" in symbol(Line("l", (), "dotted")) and "<circle" not in symbol(Line("l", (), "dotted"))
    assert "M0 7H26" not in symbol(Line("l", (), "mark", 1, "square"))
