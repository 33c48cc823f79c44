"""How datasets, metrics and numbers are named, the same in every table of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from wiseft_dist.evaluate.statistics.intervals import Interval
    from wiseft_dist.evaluate.statistics.statistics import DatasetStatistics, Statistics

METRIC_NAMES = {
    "top1": "top-1",
    "mean_per_class": "mean per class",
    "macro_f1": "macro F1",
    "worst_group": "worst group",
    "pm0": "pm-0",
}
NOTHING = "–"
"""What stands where there is no number."""


def shown_datasets(statistics: Statistics) -> tuple[str, ...]:
    """The datasets of tables: the reference, where there is one, and the shifts."""
    return (*([] if statistics.reference is None else [statistics.reference]), *statistics.shifts)


def has_both(statistics: Statistics) -> bool:
    """Whether there is a trade-off to draw: a reference and shifts."""
    return statistics.reference is not None and bool(statistics.shifts)


def ends_and_chosen(statistics: Statistics) -> dict[str, float]:
    """The alphas that most tables compare: both ends and the one to report, as far as they were evaluated."""
    chosen = statistics.chosen
    ends = {"zero-shot": 0.0, "fine-tuned": 1.0}
    named = {f"{name}, chosen" if alpha == chosen else name: alpha for name, alpha in ends.items()}
    if chosen is not None and chosen not in ends.values():
        named["chosen"] = chosen
    return {
        name: alpha for name, alpha in sorted(named.items(), key=lambda item: item[1]) if alpha in statistics.alphas
    }


def metric_name(dataset: DatasetStatistics) -> str:
    """``top-1``, ``macro F1``; of a dataset whose groups have a name, such as region, ``worst region``."""
    if dataset.metric == "worst_group" and dataset.group:
        return f"worst {dataset.group}"
    return METRIC_NAMES[dataset.metric]


def column_name(statistics: Statistics, name: str) -> str:
    """The dataset, and its metric where that is not top-1: ``fmow (worst region)``."""
    dataset = statistics.datasets[name]
    return name if dataset.metric == "top1" else f"{name} ({metric_name(dataset)})"


def class_name(classnames: Sequence[str], label: int) -> str:
    """The class's name; where it has none, its number."""
    return classnames[label] if 0 <= label < len(classnames) else f"class {label}"


def is_all_top1(statistics: Statistics) -> bool:
    """Whether the reference and every shift have top-1 accuracy as their number."""
    return all(statistics.datasets[name].metric == "top1" for name in shown_datasets(statistics))


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether there is such a number: it is neither None nor NaN."""
    return value is not None and not math.isnan(value)


def percent(fraction: float | None) -> str:
    """``83.33``."""
    return f"{100 * fraction:.2f}" if is_known(fraction) else NOTHING


def points(difference: float | None) -> str:
    """Percentage points with their sign: ``+5.63``."""
    return f"{difference:+.2f}" if is_known(difference) else NOTHING


def number(value: float | None) -> str:
    """``0.1234``."""
    return f"{value:.4f}" if is_known(value) else NOTHING


def p_value(value: float) -> str:
    """``0.0312``, and ``< 0.0001`` for what would be rounded to nothing."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def percent_range(interval: Interval) -> str:
    """``70.10 to 92.30``, from fractions."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def points_range(interval: Interval) -> str:
    """``-0.31 to +2.40``, from percentage points."""
    return f"{points(interval.low)} to {points(interval.high)}"
