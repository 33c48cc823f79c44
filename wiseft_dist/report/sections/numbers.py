"""Numbers as cells of a table: the text that is read, and the value that its column is sorted by."""

from __future__ import annotations

import math

from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.report.page.section import Cell, Row
from wiseft_dist.report.wording import (
    is_known,
    number,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
)


def percent_cell(fraction: float | None, small: str = "") -> Cell:
    """A fraction in percent."""
    return Cell(percent(fraction), small, value=_scaled(fraction, 100))


def percent_with_interval(fraction: float | None, interval: Interval) -> Cell:
    """A fraction in percent, its interval beside it."""
    return percent_cell(fraction, f"({percent_range(interval)})" if is_known(fraction) else "")


def points_cell(difference: float | None, small: str = "") -> Cell:
    """Percentage points with their sign."""
    return Cell(points(difference), small, value=_scaled(difference, 1))


def points_with_interval(difference: float, interval: Interval) -> Cell:
    """Percentage points with their interval."""
    return points_cell(difference, f"({points_range(interval)})")


def number_cell(value: float | None) -> Cell:
    """A number with four decimals."""
    return Cell(number(value), value=_scaled(value, 1))


def count_cell(count: int) -> Cell:
    """How many."""
    return Cell(f"{count:,}", value=float(count))


def alpha_cell(alpha: float) -> Cell:
    """A mixing coefficient."""
    return Cell(f"{alpha:g}", value=float(alpha))


def p_cell(value: float) -> Cell:
    """A p-value."""
    return Cell(p_value(value), value=_scaled(value, 1))


def percent_row(name: str, *fractions: float | None) -> Row:
    """A line of fractions in percent."""
    return Row(name, tuple(map(percent_cell, fractions)))


def _scaled(value: float | None, factor: float) -> float | None:
    """What a column sorts by; None where there is no number, or no finite one."""
    return factor * value if is_known(value) and math.isfinite(value) else None
