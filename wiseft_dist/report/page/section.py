"""A section of the page: a heading, sentences, a table. It holds plain text; the template escapes all of it."""

from __future__ import annotations

from dataclasses import dataclass

from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.wording import is_known, percent, percent_range


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    text: str
    small: str = ""
    """What stands beside it in small type: an interval, an alpha."""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    name: str
    """Its heading."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """What stands under one heading."""

    title: str
    columns: tuple[str, ...] = ()
    """The first is of the rows' headings."""
    rows: tuple[Row, ...] = ()
    sentences: tuple[str, ...] = ()
    """As a list, above the table."""
    note: str = ""
    """How to read the table, under it."""
    is_folded: bool = False
    """Whether it opens only when it is asked for."""


def row(name: str, *texts: str) -> Row:
    """A line without small type."""
    return Row(name, tuple(map(Cell, texts)))


def with_interval(value: float, interval: Interval) -> Cell:
    """A fraction in percent, its interval beside it."""
    return Cell(percent(value), f"({percent_range(interval)})" if is_known(value) else "")


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
