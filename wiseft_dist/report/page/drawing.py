"""Charts as inline SVG: no script, no style of its own, colours by classes of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

from markupsafe import Markup

from wiseft_dist.report.page.charts import NUM_COLOURS, Chart, Line, Point, Scale, Shape
from wiseft_dist.report.page.labels import Box, Wanted, along, around, place, shortened, width_of
from wiseft_dist.report.page.scales import Axis, axis, tick_text
from wiseft_dist.report.page.text import number_text, shown

Size = Literal["wide", "narrow", "small"]

RADIUS = {"curve": 3.5, "mark": 8.0}
"""Of symbols; other styles have none."""
EMPTY = Markup("")


@dataclass(frozen=True)
class _Paper:
    """What a size means, in units of the drawing."""

    width: int
    height: int
    type_size: float
    num_ticks: int


PAPERS: dict[Size, _Paper] = {
    "wide": _Paper(640, 440, 13, 8),
    "narrow": _Paper(340, 340, 11.5, 5),
    "small": _Paper(320, 240, 11.5, 5),
}


def svg(chart: Chart, scale: Scale = "linear", size: Size | None = None) -> Markup:
    """The chart as one ``<svg>``; its points can be hovered over.

    Args:
        chart: What it shows.
        scale: One of the chart's.
        size: Its proportions; by default small or wide, as the chart is.
    """
    paper = PAPERS[size or ("small" if chart.is_small else "wide")]
    drawing = _Drawing(chart, paper, *_axes(chart, scale, paper))
    return Markup('<svg role="img" viewBox="0 0 {} {}" font-size="{}"><title>{}</title><desc>{}</desc>{}</svg>').format(
        *(paper.width, paper.height, paper.type_size, shown(chart.title), shown(_described(chart, scale))),
        _joined(drawing.parts()),
    )


def symbol(line: Line) -> Markup:
    """What stands before a line's name in a legend."""
    parts = []
    if line.style != "mark":
        parts.append(Markup('<path class="line {} c{}" d="M0 7H26"/>').format(line.style, line.colour % NUM_COLOURS))
    if line.style in RADIUS:
        parts.append(_symbol(line.shape, 13, 7, min(RADIUS[line.style], 6), _class(line)))
    return Markup('<svg class="key" viewBox="0 0 26 14" aria-hidden="true">{}</svg>').format(_joined(parts))


def mark(shape: Shape, colour: int) -> Markup:
    """The symbol of a mark by itself."""
    return symbol(Line("", (), "mark", colour, shape))


def _described(chart: Chart, scale: Scale) -> str:
    names = [line.name for line in chart.lines if line.name]
    lines = f" Lines: {', '.join(names)}." if len(names) > 1 else ""
    kind = {"linear": "", "logit": " Both axes are on a logit scale.", "log": " The y axis is logarithmic."}[scale]
    return f"{chart.description} {chart.x_label} against {chart.y_label}.{lines}{kind}".strip()


def _axes(chart: Chart, scale: Scale, paper: _Paper) -> tuple[Axis, Axis]:
    """The x and the y axis; the y axis leaves as much room at its left as its ticks need."""
    drawn = [point for line in chart.lines for point in line.points if point.is_finite]
    xs = [value for point in drawn for value in (point.x, *(point.x_range or ()))]
    ys = [value for point in drawn for value in (point.y, *(point.y_range or ()))]
    size = paper.type_size
    y = axis(ys, scale, paper.height - 3.6 * size, 0.8 * size, paper.num_ticks)
    left = 2.6 * size + max((width_of(tick_text(tick), size) for tick in y.ticks), default=0)
    # Only a logit is of both axes: steps and alphas may be zero, which has no logarithm.
    x_scale: Scale = "logit" if scale == "logit" else "linear"
    return axis(xs, x_scale, left, paper.width - 1.2 * size, paper.num_ticks), y


@dataclass(frozen=True)
class _Drawing:
    chart: Chart
    paper: _Paper
    x: Axis
    y: Axis

    def parts(self) -> Iterator[Markup]:
        yield from self._grid()
        yield from self._names()
        lines = [(line, [point for point in line.points if point.is_finite]) for line in self.chart.lines]
        for line, points in lines:
            if line.style in RADIUS:
                yield from self._bars(line, points)
        for line, points in lines:
            yield from self._path(line, points)
        for line, points in lines:
            yield from self._symbols(line, points)
        yield from self._labels(lines)
        if not any(points for _, points in lines):
            yield Markup('<text class="name" x="{}" y="{}" text-anchor="middle">no numbers</text>').format(
                _r((self.x.start + self.x.end) / 2), _r((self.y.start + self.y.end) / 2)
            )

    def _grid(self) -> Iterator[Markup]:
        size = self.paper.type_size
        for tick in self.x.ticks:
            at = _r(self.x.at(tick))
            yield Markup('<path class="grid" d="M{} {}V{}"/>').format(at, _r(self.y.start), _r(self.y.end))
            yield Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                at, _r(self.y.start + 1.4 * size), tick_text(tick)
            )
        for tick in self.y.ticks:
            at = _r(self.y.at(tick))
            yield Markup('<path class="grid" d="M{} {}H{}"/>').format(_r(self.x.start), at, _r(self.x.end))
            yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                _r(self.x.start - 0.5 * size), _r(self.y.at(tick) + 0.35 * size), tick_text(tick)
            )

    def _names(self) -> Iterator[Markup]:
        """What the axes are called."""
        size, middle = self.paper.type_size, (self.x.start + self.x.end) / 2
        x_label = shortened(shown(self.chart.x_label), size, self.x.end - self.x.start)
        y_label = shortened(shown(self.chart.y_label), size, self.y.start - self.y.end)
        yield Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _r(middle), _r(self.paper.height - 0.6 * size), x_label
        )
        place_of_y = f"translate({_r(1.1 * size)} {_r((self.y.start + self.y.end) / 2)}) rotate(-90)"
        yield Markup('<text class="name" transform="{}" text-anchor="middle">{}</text>').format(place_of_y, y_label)

    def _bars(self, line: Line, points: Sequence[Point]) -> Iterator[Markup]:
        """All confidence bars of a line as one path."""
        pieces = []
        for point in points:
            x, y = _r(self.x.at(point.x)), _r(self.y.at(point.y))
            if point.x_range and all(map(math.isfinite, point.x_range)):
                low, high = map(self.x.at, point.x_range)
                pieces.append(f"M{_r(low)} {y}H{_r(high)}")
            if point.y_range and all(map(math.isfinite, point.y_range)):
                low, high = map(self.y.at, point.y_range)
                pieces.append(f"M{x} {_r(low)}V{_r(high)}")
        if pieces:
            yield Markup('<path class="bar c{}" d="{}"/>').format(line.colour % NUM_COLOURS, "".join(pieces))

    def _path(self, line: Line, points: Sequence[Point]) -> Iterator[Markup]:
        if line.style != "mark" and len(points) > 1:
            d = "M" + "L".join(f"{_r(x)} {_r(y)}" for x, y in map(self._at, points))
            yield Markup('<path class="line {} c{}" d="{}"/>').format(line.style, line.colour % NUM_COLOURS, d)

    def _symbols(self, line: Line, points: Sequence[Point]) -> Iterator[Markup]:
        if line.style in RADIUS:
            for point in points:
                title = Markup("<title>{}</title>").format(shown(_text(line, point)))
                yield _symbol(line.shape, *self._at(point), self._radius(line), _class(line), title)

    def _labels(self, lines: Sequence[tuple[Line, list[Point]]]) -> Iterator[Markup]:
        """Those of marks first: they are few, and they matter."""
        size = self.paper.type_size
        frame = Box(self.x.start + 2, self.y.end + 2, self.x.end - 2, self.y.start - 2)
        radii = self._radii(lines)
        wanted = [
            Wanted(shown(point.label), *at, size if line.style == "mark" else 0.85 * size, radii[at])
            for line, points in sorted(lines, key=lambda entry: entry[0].style != "mark")
            for point, at in zip(points, map(self._at, points), strict=True)
            if point.label
        ]
        obstacles = [around(*at, radius) for at, radius in radii.items()]
        for line, points in lines:
            if line.style != "mark":
                obstacles += chain.from_iterable(along(self._at(a), self._at(b)) for a, b in pairwise(points))
        for placed in place(wanted, obstacles, frame):
            yield Markup('<text class="{}" font-size="{}" x="{}" y="{}">{}</text>').format(
                *("label strong" if placed.label.size == size else "label", _r(placed.label.size)),
                *(_r(placed.box.left), _r(placed.box.bottom - 0.28 * placed.label.size), placed.label.text),
            )

    def _radii(self, lines: Sequence[tuple[Line, list[Point]]]) -> dict[tuple[float, float], float]:
        """Of the largest symbol in each place: a label is beside all of them, whichever it is of."""
        found: dict[tuple[float, float], float] = {}
        for line, points in lines:
            for at in map(self._at, points):
                found[at] = max(found.get(at, 0.0), self._radius(line))
        return found

    def _at(self, point: Point) -> tuple[float, float]:
        return self.x.at(point.x), self.y.at(point.y)

    def _radius(self, line: Line) -> float:
        return RADIUS.get(line.style, 1.0) * self.chart.times_larger(line)


def _class(line: Line) -> str:
    return f"{'mark' if line.style == 'mark' else 'point'} c{line.colour % NUM_COLOURS}"


def _text(line: Line, point: Point) -> str:
    if point.text:
        return point.text
    coordinates = f"{number_text(point.x)}, {number_text(point.y)}"
    return f"{line.name}: {coordinates}" if line.name else coordinates


def _symbol(shape: Shape, x: float, y: float, radius: float, kind: str, inside: Markup = EMPTY) -> Markup:
    if shape == "circle":
        return Markup('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>').format(
            kind, _r(x), _r(y), radius, inside
        )
    corners = [(x + radius * dx, y + radius * dy) for dx, dy in _CORNERS[shape]]
    d = "M" + "L".join(f"{_r(a)} {_r(b)}" for a, b in corners) + "Z"
    return Markup('<path class="{}" d="{}">{}</path>').format(kind, d, inside)


def _star() -> list[tuple[float, float]]:
    """Five tips, the first one upwards."""
    return [
        (radius * math.sin(math.pi * number / 5), -radius * math.cos(math.pi * number / 5))
        for number in range(10)
        for radius in ((1.2,) if number % 2 == 0 else (0.52,))
    ]


_PLUS = [(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)]
_CORNERS: dict[Shape, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "diamond": [(0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)],
    "star": _star(),
    "plus": [*_PLUS, *((-x, -y) for x, y in _PLUS)],
}
"""Around the origin, at a radius of about one."""


def _joined(parts: Iterator[Markup] | Sequence[Markup]) -> Markup:
    return EMPTY.join(parts)


def _r(value: float) -> str:
    """A coordinate: a tenth of a unit is less than can be seen."""
    return f"{value:.1f}".removesuffix(".0")
