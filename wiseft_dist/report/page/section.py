"""A section of the page: a heading, key numbers, charts, sentences, a table, pictures.

It holds plain text and knows nothing of runs; whoever makes HTML of it escapes all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from wiseft_dist.report.page.charts import Chart, Shape


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    text: str
    small: str = ""
    """What stands beside it in small type: an interval, an alpha."""
    value: float | None = None
    """What its column sorts by, NaN last; without one the text is read as a number, or sorted as text."""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    name: str
    """Its heading."""
    cells: tuple[Cell, ...]
    value: float | None = None
    """What the column of headings sorts by, as with a cell."""


@dataclass(frozen=True)
class KeyNumbers:
    """A model and the few numbers of it that matter, in large type."""

    name: str
    """Zero-shot, chosen."""
    numbers: tuple[tuple[str, Cell], ...]
    """What each number is, and the number; its small text is the difference to another model."""
    note: str = ""
    """What stands beside the name in small type: its alpha."""
    colour: int = 0
    """Of the symbol before the name: that of its mark in the chart."""
    shape: Shape = "circle"


@dataclass(frozen=True)
class Picture:
    """A sample of a dataset."""

    image: bytes
    """A thumbnail, JPEG."""
    alt: str
    caption: tuple[str, ...]
    """Lines: its key, its label, what each model says."""


@dataclass(frozen=True)
class Section:
    """What stands under one heading, in the order of the fields."""

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
    charts: tuple[Chart, ...] = ()
    """Above the table; small ones side by side."""
    pictures: tuple[Picture, ...] = ()
    """Under the table, side by side."""
    identity: str = ""
    """Its anchor; made of the title where it is empty."""
    key_numbers: tuple[KeyNumbers, ...] = ()
    """Beside the chart."""


def row(name: str, *texts: str) -> Row:
    """A line without small type."""
    return Row(name, tuple(map(Cell, texts)))
