"""The curves of all runs in one figure, and in a small one for each dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from wiseft_dist.evaluate.statistics.statistics import AlphaStatistics, Statistics
from wiseft_dist.report.compare.differences import chosen, finetuned
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.curves import (
    MARKS,
    Place,
    axis_labels,
    chart_of,
    dataset_places,
    place_points,
    trade_off_places,
)
from wiseft_dist.report.page.charts import GREY, Chart, Line, Point, Shape
from wiseft_dist.report.wording import has_both, metric_name, shown_datasets

SHAPES: tuple[Shape, ...] = ("circle", "square", "diamond")
"""Of curves: when the palette has no further colour, it starts again with the next shape."""
ZERO_SHOT, FINETUNED, CHOSEN = (MARKS[name][1] for name in ("zero-shot", "fine-tuned", "ensemble, chosen on ID-val"))
FEW_RUNS = 3
"""With more of them, alphas are not written beside the points."""
MAX_BARS = 6
"""With more of them, the bars of the chosen alphas would hide the curves too."""

PlacesOf = Callable[[Statistics], Sequence[Place]]


@dataclass(frozen=True)
class Look:
    """How a run is drawn."""

    colour: int
    shape: Shape


def look_of(index: int) -> Look:
    """The same run looks the same in every chart."""
    return Look(index % GREY, SHAPES[index // GREY % len(SHAPES)])


def runs_chart(runs: Sequence[Compared]) -> Chart:
    """The paper's figure with a curve a run; without reference or shifts, accuracy over alpha."""
    first = runs[0].statistics
    labels = axis_labels(first)
    lines = _lines(runs, trade_off_places, labels, with_alphas=len(runs) <= FEW_RUNS)
    title = f"{labels[1]} against {labels[0]}" if has_both(first) else f"{labels[1]} over alpha"
    told = [f"{run.name}: {_described(run.statistics)}" for run in runs]
    description = f"{len(runs)} runs, one point an alpha. At the chosen alpha: {'; '.join(told)}."
    return chart_of(title, *labels, lines, has_both(first), description)


def dataset_charts(runs: Sequence[Compared]) -> tuple[Chart, ...]:
    """One for each dataset that the runs share: over the reference, or over alpha."""
    return tuple(_of_dataset(runs, name) for name in shown_datasets(runs[0].statistics))


def zero_shot_groups(runs: Sequence[Compared]) -> list[list[Compared]]:
    """Runs whose zero-shot models say the same on every dataset; without those that did not evaluate theirs."""
    groups: dict[tuple[object, ...], list[Compared]] = {}
    for run in runs:
        statistics = run.statistics
        if 0.0 in statistics.alphas:
            numbers = [statistics.datasets[name].at(0.0) for name in shown_datasets(statistics)]
            groups.setdefault(tuple(map(_what_it_says, numbers)), []).append(run)
    return list(groups.values())


def _what_it_says(numbers: AlphaStatistics) -> tuple[object, ...]:
    """The same for the same model on the same samples: other models may have as many right, but not so surely.

    Rounded, because GPUs add in other orders; as texts, in which NaN is equal to itself.
    """
    sure = (numbers.nll, numbers.brier, numbers.ece)
    return numbers.num_correct, f"{numbers.value:.6f}", *(f"{each:.3f}" for each in sure)


def _of_dataset(runs: Sequence[Compared], name: str) -> Chart:
    first = runs[0].statistics
    dataset, is_over_alpha = first.datasets[name], first.reference in (None, name)
    x_label = "alpha" if is_over_alpha else f"{first.datasets[str(first.reference)].title} (%)"
    labels = (x_label, f"{metric_name(dataset)} (%)")
    lines = _lines(runs, lambda statistics: dataset_places(statistics, name), labels, with_alphas=False)
    return replace(chart_of(dataset.title, *labels, lines, not is_over_alpha), is_small=True)


def _described(statistics: Statistics) -> str:
    """Of the chosen alpha, or why there is nothing to say."""
    alpha = chosen(statistics)
    place = next((each for each in trade_off_places(statistics) if each.alpha == alpha and each.is_known), None)
    return "none was chosen" if place is None else f"alpha {place.alpha:g}, {place.y:.2f} %"


def _lines(runs: Sequence[Compared], places_of: PlacesOf, labels: tuple[str, str], *, with_alphas: bool) -> list[Line]:
    """The curves, and over them what is marked."""
    lines: list[Line] = []
    for index, run in enumerate(runs):
        look, places = look_of(index), [place for place in places_of(run.statistics) if place.is_known]
        points = _points(run.name, places, labels)
        if with_alphas:
            named = zip(places, points, strict=True)
            points = tuple(replace(point, label=f"{place.alpha:g}") for place, point in named)
        # Bars on every point of every run would hide the curves: the chosen alphas have them.
        lines.append(Line(run.name, tuple(map(_without_bars, points)), "curve", look.colour, look.shape))
    return [*lines, *_zero_shots(runs, places_of, labels), *_marks(runs, places_of, labels), *_legend()]


def _points(name: str, places: Sequence[Place], labels: tuple[str, str]) -> tuple[Point, ...]:
    return tuple(replace(point, text=f"{name}, {point.text}") for point in place_points(places, *labels))


def _without_bars(point: Point) -> Point:
    return replace(point, x_range=None, y_range=None)


def _marks(runs: Sequence[Compared], places_of: PlacesOf, labels: tuple[str, str]) -> Iterator[Line]:
    """The fine-tuned models of all runs, and over them the chosen alphas."""
    for alpha_of, shape in ((finetuned, FINETUNED), (chosen, CHOSEN)):
        for index, run in enumerate(runs):
            alpha = alpha_of(run.statistics)
            places = [place for place in places_of(run.statistics) if place.alpha == alpha and place.is_known]
            points = _points(run.name, places, labels)
            if points:
                has_bars = shape == CHOSEN and len(runs) <= MAX_BARS
                kept = points if has_bars else tuple(map(_without_bars, points))
                yield Line("", kept, "mark", look_of(index).colour, shape)


def _zero_shots(runs: Sequence[Compared], places_of: PlacesOf, labels: tuple[str, str]) -> Iterator[Line]:
    """One mark for all runs that share the model."""
    for group in zero_shot_groups(runs):
        places = [place for place in places_of(group[0].statistics) if place.alpha == 0 and place.is_known]
        points = tuple(map(_without_bars, _points(", ".join(run.name for run in group), places, labels)))
        colour = look_of(list(runs).index(group[0])).colour if len(group) == 1 else GREY
        if points:
            yield Line("", points, "mark", colour, ZERO_SHOT)


def _legend() -> Iterator[Line]:
    """What the marks of all runs mean; nothing of them is drawn."""
    for name, shape in (("zero-shot", ZERO_SHOT), ("chosen alpha", CHOSEN), ("fine-tuned", FINETUNED)):
        yield Line(name, (), "mark", GREY, shape)
