from __future__ import annotations

import io
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up import ALPHAS, dataset, interval, statistics, with_dataset
from matplotlib.figure import Figure
from PIL import Image

from wiseft_dist.evaluate.statistics.robustness import Fit, Piece, Robustness, RobustnessPoint
from wiseft_dist.evaluate.statistics.statistics import ShiftAverage, Statistics
from wiseft_dist.report.curves import trade_off
from wiseft_dist.report.drawn_chart import PALETTE, draw, label_points
from wiseft_dist.report.figures import draw_figures
from wiseft_dist.report.page.charts import Chart, Line, Point
from wiseft_dist.run import FIGURE_FORMATS, FIGURES

SVG = "{http://www.w3.org/2000/svg}"


def of_shifts(*names: str, alphas: tuple[float, ...] = ALPHAS) -> Statistics:
    """Curves that rise above the straight line, of many alphas if asked for."""
    given = statistics()

    def entries(low: float, high: float):
        first = given.datasets["photo"].alphas[0]
        for alpha in alphas:
            value = low + (high - low) * alpha + 0.1 * math.sin(math.pi * alpha)
            yield replace(first, alpha=alpha, value=value, interval=interval(value - 0.01, value + 0.01))

    datasets = {"photo": dataset("photo", (0, 0, 0), role="reference", alphas=tuple(entries(0.6, 0.75)))}
    for number, name in enumerate(names):
        datasets[name] = dataset(name, (0, 0, 0), alphas=tuple(entries(0.5 - 0.01 * number, 0.4)))
    averages = tuple(
        ShiftAverage(alpha, value, interval(value - 0.01, value + 0.01))
        for index, alpha in enumerate(alphas)
        for value in [sum(datasets[name].alphas[index].value for name in names) / max(1, len(names))]
    )
    return replace(
        given,
        alphas=alphas,
        datasets=datasets,
        shifts=names,
        averaged_shifts=names,
        shift_average=averages if names else (),
        robustness={},
    )


def with_fit(given: Statistics) -> Statistics:
    """With the line of the standard models for its one shift."""
    (name,) = given.shifts
    points = tuple(
        RobustnessPoint(
            alpha=a.alpha,
            reference=a.value,
            reference_interval=a.interval,
            undetermined=0.0,
            shift=b.value,
            shift_interval=b.interval,
            predicted=0.4,
            effective_robustness=5.0,
            lowest=5.0,
            extrapolated=False,
        )
        for a, b in zip(given.datasets["photo"].alphas, given.datasets[name].alphas, strict=True)
    )
    fit = Fit("a_on_val", (Piece(0.9232, -0.8977),), 0.55, 0.9, "the testbed of 2020")
    return replace(given, robustness={name: Robustness("photo", 1000, 1000, fit, points)})


def texts(file: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(file).iter(f"{SVG}text")]


def without_reference(given: Statistics) -> Statistics:
    return replace(given, reference=None, datasets={name: given.datasets[name] for name in given.shifts})


def with_nan(given: Statistics) -> Statistics:
    first, *others = given.datasets["sketch"].alphas
    unknown = replace(first, value=math.nan, interval=interval(math.nan, math.nan))
    averages = (replace(given.shift_average[0], value=math.nan), *given.shift_average[1:])
    return with_dataset(replace(given, shift_average=averages), "sketch", alphas=(unknown, *others))


CASES = {
    "made up": statistics(),
    "one shift": of_shifts("sketch"),
    "sixteen shifts": of_shifts(*(f"shift_{number}" for number in range(16))),
    "no shifts": of_shifts(),
    "no reference": without_reference(of_shifts("sketch", "cartoon")),
    "two alphas": of_shifts("sketch", alphas=(0.0, 1.0)),
    "nan": with_nan(of_shifts("sketch")),
    "formulas": of_shifts("a_$x^{broken$_<b>&amp;"),
    "wide": of_shifts("写真の動物"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_figure_is_drawn_in_every_format(tmp_path, name):
    draw_figures(CASES[name], tmp_path)
    names = [f"{figure}.{suffix}" for figure in FIGURES for suffix in FIGURE_FORMATS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for figure in FIGURES:
        assert (tmp_path / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(tmp_path / f"{figure}.png") as picture:
            assert 900 < picture.width < 2200
        ElementTree.parse(tmp_path / f"{figure}.svg")


def test_the_same_numbers_give_the_same_bytes_without_a_date(tmp_path):
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        draw_figures(statistics(), folder)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0] == found[1]
    assert not any(b"CreationDate" in content or b"<dc:date>" in content for content in found[0].values())


def test_text_stays_text_and_names_what_is_marked(tmp_path):
    draw_figures(with_fit(of_shifts("sketch")), tmp_path)
    found = texts(tmp_path / "curve.svg")
    for words in (
        "photo top-1 (%)",
        "average over shifts, top-1 (%)",
        "zero-shot (0)",
        "fine-tuned (1)",
        "ensemble, chosen on ID-val (0.5)",
        "straight line between the ends",
        "standard models",
    ):
        assert words in found
    pdf = (tmp_path / "curve.pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf


def test_a_panel_stands_for_each_dataset(tmp_path):
    names = [f"shift_{number}" for number in range(16)]
    draw_figures(of_shifts(*names), tmp_path)
    assert {"photo", *names} <= set(texts(tmp_path / "datasets.svg"))


def test_what_does_not_show_in_a_name_is_written_out(tmp_path):
    draw_figures(of_shifts("\ufeffa\x1b[31mb"), tmp_path)  # unescaped, the PDF fails and the SVG is not well-formed
    assert "\\ufeffa\\x1b[31mb" in texts(tmp_path / "datasets.svg")


def test_logit_axes_make_the_line_of_the_standard_models_straight(tmp_path):
    chart = trade_off(with_fit(of_shifts("sketch")))
    axes = Figure().subplots()
    draw(chart, axes, is_logit=True)
    line = next(each for each in axes.get_lines() if each.get_label() == "standard models")
    shown = axes.transData.transform(line.get_xydata())
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(shown)]
    assert max(slopes) - min(slopes) < 1e-6 * abs(slopes[0])


def test_an_axis_with_a_perfect_score_stays_linear():
    given = of_shifts("sketch")
    perfect = tuple(replace(each, value=1.0) for each in given.datasets["photo"].alphas)
    axes = Figure().subplots()
    draw(trade_off(with_dataset(given, "photo", alphas=perfect)), axes, is_logit=True)
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "function")


def test_no_label_is_nearer_to_another_point_than_to_its_own():
    """On a curve that drops steeply at its end, with bars all around and a large symbol."""
    xs = (59.75, 62.25, 65.75, 68.75, 71.75, 72.25, 73.75, 74.5, 75.25, 76.0, 75.75)
    ys = (51.0, 50.5, 50.17, 50.08, 49.5, 48.08, 46.25, 44.67, 43.08, 41.33, 38.83)
    points = tuple(
        Point(x, y, label=f"{number / 10:g}", x_range=(x - 4.5, x + 4.5), y_range=(y - 2.8, y + 2.8))
        for number, (x, y) in enumerate(zip(xs, ys, strict=True))
    )
    chart = Chart("T", "x", "y", (Line("l", points), Line("m", (Point(75.25, 43.08),), "mark", 4, "plus")))
    figure = Figure(figsize=(3.4, 1.6), dpi=300, layout="constrained")
    axes = figure.subplots()
    draw(chart, axes, is_logit=False)
    label_points(chart, axes)
    assert len(axes.texts) >= 9
    for text in axes.texts:
        box = text.get_window_extent()
        distances = {
            point.label: math.dist(place, np.clip(place, (box.x0, box.y0), (box.x1, box.y1)))
            for point, place in ((p, axes.transData.transform((p.x, p.y))) for p in points)
        }
        assert min(distances, key=distances.__getitem__) == text.get_text()


def test_the_marks_have_the_colours_of_the_page():
    """As a reader calls them: zero-shot red, fine-tuned green."""
    red, green = ([int(PALETTE[number][at : at + 2], 16) for at in (1, 3, 5)] for number in (1, 2))
    assert max(red) == red[0] and max(green) == green[1]


@pytest.mark.parametrize("num_alphas", [2, 3, 11, 21])
def test_labels_cover_neither_each_other_nor_a_symbol(num_alphas):
    alphas = tuple(number / (num_alphas - 1) for number in range(num_alphas))
    chart = trade_off(of_shifts("sketch", "cartoon", alphas=alphas))
    figure = Figure(figsize=(3.4, 2.5), layout="constrained")
    axes = figure.subplots()
    draw(chart, axes, is_logit=False)
    label_points(chart, axes)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= min(num_alphas, 8)
    assert {"0", "1"} <= {text.get_text() for text in axes.texts}
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        places = axes.transData.transform([(point.x, point.y) for line in chart.lines[-3:] for point in line.points])
        assert not any(box.contains(*place) for place in places)


def test_marks_in_one_place_are_all_seen():
    chart = trade_off(of_shifts("sketch"))
    axes = Figure().subplots()
    draw(chart, axes, is_logit=False)
    sizes = {line.get_label(): line.get_markersize() for line in axes.get_lines()}
    assert sizes["ensemble, fixed (0.5)"] > 1.5 * sizes["ensemble, chosen on ID-val (0.5)"]


def test_a_picture_has_the_width_of_a_column(tmp_path):
    draw_figures(statistics(), tmp_path)
    with Image.open(io.BytesIO((tmp_path / "curve.png").read_bytes())) as picture:
        assert picture.width == 1020  # 3.4 inches at 300 dots
