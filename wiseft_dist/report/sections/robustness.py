"""The page's section on effective robustness: accuracy on a shift beyond what standard models reach."""

from __future__ import annotations

from collections.abc import Iterator

from wiseft_dist.evaluate.statistics.robustness import RobustnessPoint
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.sections.numbers import percent_cell, percent_with_interval, points_cell
from wiseft_dist.report.wording import ends_and_chosen, points


def robustness_sections(statistics: Statistics) -> Iterator[Section]:
    """Every shift with a line of standard models: the ends and the chosen alpha above or below it."""
    without = [name for name in statistics.shifts if name not in statistics.robustness]
    missing = f"There is no line of standard models for {', '.join(without)}." if without else ""
    if not statistics.robustness:
        if without:
            yield Section("Effective robustness", sentences=(missing,))
        return
    rows = [
        Row(f"{statistics.datasets[name].title}, {label}", tuple(_point(robustness.at(alpha))))
        for name, robustness in statistics.robustness.items()
        for label, alpha in ends_and_chosen(statistics).items()
    ]
    sources = "; ".join(dict.fromkeys(robustness.fit.source for robustness in statistics.robustness.values()))
    yield Section(
        "Effective robustness",
        ("model", "reference (%)", "predicted (%)", "measured (%)", "effective robustness (pp)", ""),
        tuple(rows),
        sentences=tuple(filter(None, (missing, _unknown_end(statistics)))),
        note="By how much a shift's value is above that of standard models with the same reference accuracy. The "
        "reference is restricted to the shift's classes, so it differs from line to line; at least: if every sample "
        "with none of these classes among the five likeliest were right. "
        f"Fitted on: {sources}.",
    )


def _unknown_end(statistics: Statistics) -> str:
    """What "perhaps extrapolated" means; empty where nothing is."""
    found = statistics.robustness.items()
    names = [name for name, robustness in found if any(point.extrapolated is None for point in robustness.points)]
    if not names:
        return ""
    return (
        f"{', '.join(names)}: the upper end of the fitted range is not known, so effective robustness may be "
        "extrapolated."
    )


def _point(point: RobustnessPoint) -> Iterator[Cell]:
    yield percent_with_interval(point.reference, point.reference_interval)
    yield percent_cell(point.predicted)
    yield percent_with_interval(point.shift, point.shift_interval)
    at_least = f"(at least {points(point.lowest)})" if point.undetermined else ""
    yield points_cell(point.effective_robustness, at_least)
    yield Cell("perhaps extrapolated" if point.extrapolated is None else "extrapolated" if point.extrapolated else "")
