"""The page's section on training: losses, accuracy on the held-out piece, speed, over steps."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from wiseft_dist.report.history import History, Series, Training
from wiseft_dist.report.page.charts import Chart, Line, Point, Scale, Style
from wiseft_dist.report.page.section import Section
from wiseft_dist.tracking.scrubbing import scrubbed

MAX_POINTS = 300
"""Of a line, about: what a screen can show."""
MAX_SYMBOLS = 40
TITLES = {"linear_head": "Training of the head", "finetune": "Training"}
CURVES = (
    ("Loss", "loss", ("loss", "id_val/loss"), 1.0),
    ("Accuracy on the held-out piece", "top-1 (%)", ("id_val/top1",), 100.0),
    ("Learning rate", "learning rate", ("lr",), 1.0),
    ("Gradient norm", "norm", ("gradient_norm",), 1.0),
    ("Speed", "samples/s", ("samples_per_second",), 1.0),
)
"""Title, y axis, metrics of the events and the factor from their unit to the axis's."""
ON_DEMAND_LOGARITHMIC = ("Loss", "Gradient norm")
"""Titles of those that may fall, or rise, by powers of ten."""
NAMES = {"loss": "training", "id_val/loss": "held-out piece"}


def training_sections(history: History) -> Iterator[Section]:
    """One for each training, in their order; none where nothing was logged."""
    for stage, title in TITLES.items():
        training = history.trainings.get(stage)
        if training is None or not training.series:
            continue
        charts = tuple(chart for curve in CURVES if (chart := _chart(training, *curve)) is not None)
        if charts:
            yield Section(title, sentences=tuple(_sentences(training)), note=_note(training), charts=charts)


def thinned(steps: Sequence[float], values: Sequence[float], most: int = MAX_POINTS) -> list[int]:
    """Which points to draw: the ends, and of each stretch the lowest and the highest value, so that no peak is lost.

    Returns:
        Rising indices, at most ``most`` of them.
    """
    if len(steps) <= most:
        return list(range(len(steps)))
    num_stretches = (most - 2) // 2
    chosen = {0, len(steps) - 1}
    for stretch in range(num_stretches):
        inside = range(len(steps) * stretch // num_stretches, len(steps) * (stretch + 1) // num_stretches)
        known = [index for index in inside if math.isfinite(values[index])]
        if known:
            chosen |= {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
    return sorted(chosen)


def _chart(training: Training, title: str, label: str, names: Sequence[str], factor: float) -> Chart | None:
    lines = [
        Line(NAMES.get(name, ""), series_points(series, label, factor), series_style(series), colour)
        for colour, name in zip((0, 2), names, strict=False)
        if (series := training.series.get(name)) is not None
    ]
    if not lines:
        return None
    resumed = _resumed(training, training.series[next(name for name in names if name in training.series)], factor)
    if resumed:
        lines.append(Line("resumed", resumed, "mark", 3, "plus"))
    return Chart(title, "step", label, tuple(lines), series_scales(title, lines), is_small=True)


def series_scales(title: str, lines: Sequence[Line]) -> tuple[Scale, ...]:
    """With a logarithmic y axis where that is of use and every value has a logarithm."""
    values = [point.y for line in lines for point in line.points if point.is_finite]
    is_logarithmic = title in ON_DEMAND_LOGARITHMIC and values and min(values) > 0
    return ("linear", "log") if is_logarithmic else ("linear",)


def series_style(series: Series) -> Style:
    """Symbols where there are few enough to tell apart."""
    return "curve" if len(series) <= MAX_SYMBOLS else "plain"


def series_points(series: Series, label: str, factor: float) -> tuple[Point, ...]:
    """What is drawn of a metric, times a factor, with what a reader is told of each point."""
    return tuple(
        Point(series.steps[index], factor * series.values[index], _text(series, index, label, factor))
        for index in thinned(series.steps, series.values)
    )


def _text(series: Series, index: int, label: str, factor: float) -> str:
    return f"step {series.steps[index]:,.0f}: {label} {factor * series.values[index]:.6g}"


def _resumed(training: Training, series: Series, factor: float) -> tuple[Point, ...]:
    """On the curve, where later sessions went on."""
    places = dict.fromkeys(min(bisect_left(series.steps, step), len(series) - 1) for step in training.resumed)
    return tuple(
        Point(series.steps[place], factor * series.values[place], f"resumed before step {series.steps[place]:,.0f}")
        for place in places
    )


def _sentences(training: Training) -> Iterator[str]:
    if training.bottleneck:
        yield f"The last session: {scrubbed(training.bottleneck)}"
    if training.num_bad_steps:
        count = training.num_bad_steps
        told = "step was left out: its" if count == 1 else "steps were left out: their"
        yield f"{count:,} {told} gradients were no numbers."


def _note(training: Training) -> str:
    longest = max((len(series) for series in training.series.values()), default=0)
    text = f"{longest:,} lines of metrics"
    text += f" of {training.total_steps:,} steps." if training.total_steps else "."
    if training.resumed:
        text += f" Resumed at step {', '.join(f'{step:,}' for step in training.resumed[:10])}"
        text += ", ... ." if len(training.resumed) > 10 else "."
        text += " Steps that were done again are shown as they were told first."
    return text + (f" Drawn are about {MAX_POINTS}, with every peak." if longest > MAX_POINTS else "")
