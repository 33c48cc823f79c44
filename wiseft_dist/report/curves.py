"""Statistics as charts: the paper's figure, and a small one for each dataset.

Accuracies are in percent. A point that is no number is left out; so are the straight line where an end was not
evaluated, and logit axes where a value has no logit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from scipy.special import expit, logit

from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.robustness import Fit, Robustness
from wiseft_dist.evaluate.statistics.statistics import AlphaStatistics, Statistics
from wiseft_dist.report.page.charts import GREY, Chart, Line, Point, Scale, Shape
from wiseft_dist.report.table import named_alphas
from wiseft_dist.report.wording import has_both, is_all_top1, is_known, metric_name, shown_datasets

NUM_SAMPLES = 41
"""Points of a line that is straight on one scale and bent on another."""
ENSEMBLES, OUTPUTS, FIT, STRAIGHT = 0, 5, 6, GREY
"""Colours of the palette; those between are of what is marked."""
MARKS: dict[str, tuple[int, Shape]] = {
    "zero-shot": (1, "square"),
    "fine-tuned": (2, "diamond"),
    "ensemble, fixed": (3, "star"),
    "ensemble, chosen on ID-val": (4, "plus"),
}
"""Colour and shape of the alphas worth naming."""
REFERENCE_TOLERANCE = 1e-9
"""Two accuracies that differ by less are the same: the last bit of a division."""


@dataclass(frozen=True)
class Place:
    """One alpha in a chart; percent, or alpha on the x axis."""

    alpha: float
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is something to draw."""
        return math.isfinite(self.x) and math.isfinite(self.y)


def trade_off(statistics: Statistics) -> Chart:
    """The paper's figure (arXiv 2109.01903, figure 1); without reference or shifts, accuracy over alpha."""
    places = trade_off_places(statistics)
    x_label, y_label = axis_labels(statistics)
    outputs = [place for place in _output_places(statistics) if place.is_known]
    lines = [
        *straight_line(places),
        *_only_fit(statistics),
        *([Line("ensembles of outputs", place_points(outputs, x_label, y_label), "curve", OUTPUTS)] if outputs else []),
        *curve(places, "ensembles of weights, one point an alpha", x_label, y_label),
        *_marks(statistics, places, x_label, y_label),
    ]
    title = f"{y_label} against {x_label}" if has_both(statistics) else f"{y_label} over alpha"
    chart = chart_of(title, x_label, y_label, lines, has_both(statistics), _described(statistics, places))
    return replace(chart, is_tabled=not outputs)


def dataset_charts(statistics: Statistics) -> tuple[Chart, ...]:
    """A small figure for each dataset: over the reference, with the line of the standard models where there is one."""
    return tuple(_of_dataset(statistics, name) for name in shown_datasets(statistics))


def trade_off_places(statistics: Statistics) -> list[Place]:
    """Where each alpha lies in the paper's figure, known or not."""
    averages = {entry.alpha: entry for entry in statistics.shift_average}
    if statistics.reference is None:
        return [
            Place(alpha, alpha, 100 * entry.value, None, _range(entry.interval)) for alpha, entry in averages.items()
        ]
    reference = statistics.datasets[statistics.reference]
    if not averages:
        return [over_alpha(entry) for entry in reference.alphas]
    return [
        Place(
            entry.alpha,
            100 * entry.value,
            100 * averages[entry.alpha].value,
            _range(entry.interval),
            _range(averages[entry.alpha].interval),
        )
        for entry in reference.alphas
    ]


def dataset_places(statistics: Statistics, name: str) -> list[Place]:
    """Where each alpha lies in a dataset's figure: over the reference; over alpha of the reference, or without one."""
    dataset = statistics.datasets[name]
    if statistics.reference in (None, name):
        return [over_alpha(entry) for entry in dataset.alphas]
    reference = statistics.datasets[str(statistics.reference)]
    return [
        Place(a.alpha, 100 * a.value, 100 * b.value, _range(a.interval), _range(b.interval))
        for a, b in zip(reference.alphas, dataset.alphas, strict=True)
    ]


def axis_labels(statistics: Statistics) -> tuple[str, str]:
    """Of the paper's figure."""
    average = "average over shifts, top-1 (%)" if is_all_top1(statistics) else "average over shifts (%)"
    if statistics.reference is None:
        return "alpha", average
    dataset = statistics.datasets[statistics.reference]
    reference = f"{dataset.title} {metric_name(dataset)} (%)"
    return (reference, average) if has_both(statistics) else ("alpha", reference)


def straight_line(places: Sequence[Place]) -> list[Line]:
    """What mixing the ends' accuracies would give, straight in accuracy whatever the scale; empty without both ends."""
    if not places or (places[0].alpha, places[-1].alpha) != (0.0, 1.0):
        return []
    first, last = places[0], places[-1]
    if not (first.is_known and last.is_known):
        return []
    shares = np.linspace(0, 1, NUM_SAMPLES).tolist()
    points = tuple(Point((1 - s) * first.x + s * last.x, (1 - s) * first.y + s * last.y) for s in shares)
    return [Line("straight line between the ends", points, "dotted", STRAIGHT)]


def _of_dataset(statistics: Statistics, name: str) -> Chart:
    dataset, robustness = statistics.datasets[name], statistics.robustness.get(name)
    label = f"{metric_name(dataset)} (%)"
    is_over_alpha = statistics.reference in (None, name)
    if robustness is not None:
        of = statistics.datasets[robustness.reference]
        x_label = f"{of.title} on {robustness.num_reference_classes:,} classes (%)"
        places, fit = _robustness_places(robustness), _fit_lines(robustness.fit, _robustness_places(robustness))
    elif is_over_alpha:
        x_label, places, fit = "alpha", dataset_places(statistics, name), []
    else:
        x_label, fit = f"{statistics.datasets[str(statistics.reference)].title} (%)", []
        places = dataset_places(statistics, name)
    lines = [*straight_line(places), *fit, *curve(places, "ensembles", x_label, label, with_labels=False)]
    lines += _marks(statistics, places, x_label, label)
    has_logit = robustness is not None or not is_over_alpha
    # What standard models are held against is an accuracy on some classes, which no table of the page has.
    is_tabled = robustness is None
    return replace(chart_of(dataset.title, x_label, label, lines, has_logit), is_small=True, is_tabled=is_tabled)


def curve(places: Sequence[Place], name: str, x_label: str, y_label: str, *, with_labels: bool = True) -> list[Line]:
    """The ensembles, one point an alpha; empty where nothing is known."""
    known = [place for place in places if place.is_known]
    points = place_points(known, x_label, y_label)
    if with_labels:
        points = tuple(replace(p, label=f"{place.alpha:g}") for place, p in zip(known, points, strict=True))
    return [Line(name, points, "curve", ENSEMBLES)] if points else []


def place_points(places: Iterable[Place], x_label: str, y_label: str) -> tuple[Point, ...]:
    """With what a reader is told of each."""
    return tuple(_point(place, x_label, y_label) for place in places)


def _point(place: Place, x_label: str, y_label: str) -> Point:
    x = "" if x_label == "alpha" else f"{x_label.removesuffix(' (%)')} {place.x:.2f} %, "
    text = f"alpha {place.alpha:g}: {x}{y_label.removesuffix(' (%)')} {place.y:.2f} %"
    return Point(place.x, place.y, text, x_range=place.x_range, y_range=place.y_range)


def mark_of(statistics: Statistics, alpha: float) -> tuple[int, Shape]:
    """Colour and shape of an alpha in every figure; one that is several things looks as what is drawn last."""
    names = [name for name, of in named_alphas(statistics).items() if of == alpha and name in MARKS]
    return MARKS[names[-1]] if names else (ENSEMBLES, "circle")


def _marks(statistics: Statistics, places: Sequence[Place], x_label: str, y_label: str) -> Iterator[Line]:
    for name, alpha in named_alphas(statistics).items():
        if name in MARKS and (point := point_at(places, alpha, x_label, y_label)):
            colour, shape = MARKS[name]
            yield Line(f"{name} ({alpha:g})", point, "mark", colour, shape)


def point_at(places: Iterable[Place], alpha: float, x_label: str, y_label: str) -> tuple[Point, ...]:
    """The point of an alpha alone, without its ranges, which the curve has."""
    found = (place for place in places if place.alpha == alpha and place.is_known)
    return tuple(replace(_point(place, x_label, y_label), x_range=None, y_range=None) for place in found)


def _only_fit(statistics: Statistics) -> list[Line]:
    """The line of the standard models in the paper's figure: for one shift, on an axis that is the figure's own."""
    if statistics.reference is None or len(statistics.shifts) != 1 or not statistics.robustness:
        return []
    (robustness,) = statistics.robustness.values()
    reference = statistics.datasets[statistics.reference]
    same = all(abs(reference.at(p.alpha).value - p.reference) < REFERENCE_TOLERANCE for p in robustness.points)
    return _fit_lines(robustness.fit, _robustness_places(robustness)) if same else []


def _fit_lines(fit: Fit, places: Sequence[Place]) -> list[Line]:
    """The line around the places, and the band of a fit of one's own."""
    xs = [place.x / 100 for place in places if place.is_known]
    if not xs:
        return []
    margin = 0.1 * max(max(xs) - min(xs), 0.1)
    low, high = max(min(xs) - margin, 0.005), min(max(xs) + margin, 0.995)
    samples = expit(np.linspace(logit(low), logit(high), NUM_SAMPLES)).tolist()
    lines = [
        Line(
            "standard models, extrapolated" if is_beyond else "standard models",
            tuple(Point(100 * x, 100 * fit.predict(x)) for x in stretch),
            "dotted" if is_beyond else "dashed",
            FIT,
        )
        for is_beyond, stretch in groupby(samples, key=lambda x: fit.extrapolates(x) is True)
    ]
    band = [point for point in fit.band if low <= point.reference <= high]
    edges = [tuple(Point(100 * p.reference, 100 * getattr(p, edge)) for p in band) for edge in ("low", "high")]
    named = zip(("their 95 % band", ""), edges, strict=True)
    return [*lines, *(Line(name, edge, "plain", FIT) for name, edge in named if edge)]


def _robustness_places(robustness: Robustness) -> list[Place]:
    return [
        Place(
            point.alpha,
            100 * point.reference,
            100 * point.shift,
            _range(point.reference_interval),
            _range(point.shift_interval),
        )
        for point in robustness.points
    ]


def _output_places(statistics: Statistics) -> Iterator[Place]:
    """Mixtures of logits, where each dataset of the figure has them."""
    if not has_both(statistics):
        return
    names = [str(statistics.reference), *statistics.averaged_shifts]
    values = [{entry.alpha: entry.value for entry in statistics.datasets[name].output_space} for name in names]
    for alpha in statistics.alphas:
        if all(alpha in each for each in values):
            x, *ys = (100 * each[alpha] for each in values)
            yield Place(alpha, x, sum(ys) / len(ys))


def over_alpha(entry: AlphaStatistics) -> Place:
    """A dataset's own accuracy, over alpha."""
    return Place(entry.alpha, entry.alpha, 100 * entry.value, None, _range(entry.interval))


def _range(interval: Interval) -> tuple[float, float] | None:
    is_whole = is_known(interval.low) and is_known(interval.high)
    return (100 * interval.low, 100 * interval.high) if is_whole else None


def chart_of(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], wants_logit: bool, description: str = ""
) -> Chart:
    """With logit axes where they are wanted, there is something to show, and every value has a logit."""
    values = [value for line in lines for point in line.points for value in (point.x, point.y)]
    has_logits = bool(values) and all(0 < value < 100 for value in values)
    scales: tuple[Scale, ...] = ("linear", "logit") if wants_logit and has_logits else ("linear",)
    return Chart(title, x_label, y_label, tuple(lines), scales, description=description)


def _described(statistics: Statistics, places: Sequence[Place]) -> str:
    """One sentence for whoever does not see the chart."""
    named = {name: alpha for name, alpha in named_alphas(statistics).items() if name in MARKS}
    found = {place.alpha: place for place in places if place.is_known}
    told = [f"{name} (alpha {alpha:g}) {found[alpha].y:.2f} %" for name, alpha in named.items() if alpha in found]
    label = axis_labels(statistics)[1].removesuffix(" (%)")
    return f"{len(found)} alphas; {label}: {', '.join(told)}."
