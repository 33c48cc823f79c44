"""Charts as data: lines of points and what their axes are called. ``drawing.py`` makes SVG of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "logit", "log"]
Shape = Literal["circle", "square", "diamond", "star", "plus"]
Style = Literal["curve", "plain", "dotted", "dashed", "mark"]

NUM_COLOURS = 8
"""Colours of the palette; a greater number starts again."""
GREY = 7
"""The palette's colour for what is no model: a straight line, a diagonal."""


@dataclass(frozen=True)
class Point:
    """A point, in the units of the axes; one that is not finite is left out."""

    x: float
    y: float
    text: str = ""
    """What hovering and a screen reader say; its coordinates, where it is empty."""
    label: str = ""
    """Drawn beside it, where there is room."""
    x_range: tuple[float, float] | None = None
    """Low and high end of a confidence bar."""
    y_range: tuple[float, float] | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it can be drawn."""
        return math.isfinite(self.x) and math.isfinite(self.y)


@dataclass(frozen=True)
class Line:
    """Points that belong together."""

    name: str
    """Its entry in the legend; one without a name has none."""
    points: tuple[Point, ...]
    style: Style = "curve"
    """curve: joined points; plain, dotted, dashed: a line alone; mark: large symbols."""
    colour: int = 0
    """Of the palette, which is safe for the colour-blind; 0 is the page's accent."""
    shape: Shape = "circle"


@dataclass(frozen=True)
class Chart:
    """A chart with two axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    """Later ones are drawn over earlier ones."""
    scales: tuple[Scale, ...] = ("linear",)
    """The first is shown and a button shows the others. logit: both axes, in percent; log: the y axis, above zero."""
    is_small: bool = False
    """One of several that stand side by side."""
    description: str = ""
    """What a screen reader says of it after its title."""
    is_tabled: bool = False
    """Whether a table of the page has its numbers already; else they are folded under it."""

    def times_larger(self, line: Line) -> float:
        """By how much a line's symbols are larger than usual: of marks in one place the lower ones, so all are seen."""
        if line.style != "mark":
            return 1.0
        marks = [other for other in self.lines if other.style == "mark"]
        places = [{(point.x, point.y) for point in mark.points} for mark in marks[marks.index(line) :]]
        return 1 + 0.55 * min(sum(bool(places[0] & other) for other in places[1:]), 2)
