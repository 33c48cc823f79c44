"""A chart of the report on matplotlib's axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wiseft_dist.report.page.charts import GREY, Chart, Line, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.path import Path
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8A8A8A")
"""Okabe and Ito's colours (Color Universal Design, 2008), in the order of the page's: blue, red, green, purple."""
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "star": "*", "plus": "P"}
MARK_POINTS = {"star": 8.5, "plus": 7.0}
"""Sizes of large symbols; others are 5.5."""
DASHES = {"dotted": ":", "dashed": "--", "plain": "-", "curve": "-", "mark": ""}
EDGE = 0.05
"""Percent: no bar on logit axes comes nearer to 0 or 100, which lie at infinity."""
WIDE_LOGITS = 3.0
"""From this many logits on, round numbers of the middle leave the ends without a tick."""
LOGIT_TICKS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 50, 70, 80, 90, 95, 98, 99, 99.5, 99.9)
OFFSETS = tuple(
    (distance * dx, distance * dy)
    for distance in (3.0, 4.5, 7.0)
    for dx, dy in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1.2, 0), (-1.2, 0))
)
"""Points from a symbol to its label, the best first."""
NUM_ENDS = 2
"""Labels that are written even where there is no good place for them."""
LABEL_SIZE = 5.5


def draw(chart: Chart, axes: Axes, *, is_logit: bool) -> None:
    """Draw lines, symbols and confidence bars; an axis of accuracies becomes a logit one if that is asked for.

    One that has a point at 0 or 100 % stays linear, as does the axis of alpha.
    """
    logit_x = is_logit and chart.x_label != "alpha" and _has_logits(point.x for point in _points(chart))
    logit_y = is_logit and _has_logits(point.y for point in _points(chart))
    for axis, is_of_logits in ((axes.xaxis, logit_x), (axes.yaxis, logit_y)):
        if is_of_logits:
            _set_logit(axis, axes, chart)
    for order, line in enumerate(chart.lines):
        _draw_line(line, axes, order, factor=(0.75 if chart.is_small else 1.0) * chart.times_larger(line))
        _draw_bars(line, axes, logit_x, logit_y)
    axes.grid(color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)


def label_points(chart: Chart, axes: Axes) -> None:
    """Write labels beside points, where they cover neither each other nor a symbol nor the curve, nor look another's.

    The ends come first and get a label; of the others those are left out that find no room.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    taken, curves, others = list(_symbols(chart, axes)), _paths(chart, axes, of_curves=True), _paths(chart, axes)
    frame = axes.get_window_extent()
    labelled = [point for line in chart.lines for point in line.points if point.label and point.is_finite]
    places = {point: tuple(axes.transData.transform((point.x, point.y))) for point in labelled}
    for number, point in enumerate(_spread(labelled)):
        text, best = _label(axes, point), None
        for offset in OFFSETS:
            box = _move(text, offset)
            if not _is_inside(box, frame) or any(box.overlaps(each) for each in taken):
                continue
            on_curves, on_others = (
                sum(path.intersects_bbox(box, filled=False) for path in paths) for paths in (curves, others)
            )
            flaws = (on_curves, _num_nearer(box, places[point], places.values()), on_others)
            if best is None or flaws < best[0]:
                best = flaws, offset
        if best is None or (any(best[0][:2]) and number >= NUM_ENDS):
            text.remove()
        else:
            taken.append(_move(text, best[1]))


def _num_nearer(box: Bbox, own: Sequence[float], places: Iterable[Sequence[float]]) -> int:
    """How many places are nearer to a label than its own: it would be read as theirs."""

    def distance(place: Sequence[float]) -> float:
        x, y = place
        return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))

    return sum(distance(place) < distance(own) for place in places)


def _points(chart: Chart) -> Iterator[Point]:
    return (point for line in chart.lines for point in line.points if point.is_finite)


def _has_logits(values: Iterator[float]) -> bool:
    found = list(values)
    return bool(found) and all(0 < value < 100 for value in found)


def _set_logit(axis: Axis, axes: Axes, chart: Chart) -> None:
    """Percent, evenly spaced in their logits."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    is_x = axis is axes.xaxis
    values = [_logit(point.x if is_x else point.y) for point in _points(chart)]
    (axes.set_xscale if is_x else axes.set_yscale)("function", functions=(_logit, _expit))
    is_wide = max(values) - min(values) > WIDE_LOGITS
    axis.set_major_locator(FixedLocator(LOGIT_TICKS) if is_wide else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _logit(percent: Any) -> Any:
    inside = np.clip(percent, 1e-4, 100 - 1e-4)
    return np.log(inside / (100 - inside))


def _expit(value: Any) -> Any:
    return 100 / (1 + np.exp(-np.asarray(value)))


def _draw_line(line: Line, axes: Axes, order: int, *, factor: float) -> None:
    points = [point for point in line.points if point.is_finite]
    is_mark, has_symbols = line.style == "mark", line.style in ("curve", "mark")
    size = MARK_POINTS.get(line.shape, 5.5) if is_mark else 2.5
    axes.plot(
        [point.x for point in points],
        [point.y for point in points],
        linestyle=DASHES[line.style],
        linewidth=1.0,
        marker=MARKERS[line.shape] if has_symbols else "",
        markersize=factor * size,
        markeredgecolor="white" if is_mark else PALETTE[line.colour % len(PALETTE)],
        markeredgewidth=0.4 if is_mark else 0.0,
        color=PALETTE[line.colour % len(PALETTE)],
        label=line.name if line.name and points else "_",
        zorder=(4 if is_mark else 2 if line.colour != GREY else 1.5) + 0.01 * order,
    )


def _draw_bars(line: Line, axes: Axes, logit_x: bool, logit_y: bool) -> None:
    """All of a line as one path, which is drawn much faster than each by itself; not a number parts them."""
    xs: list[float] = []
    ys: list[float] = []
    for point in line.points:
        if point.is_finite and point.x_range is not None:
            xs += [*_clipped(point.x_range, logit_x), math.nan]
            ys += [point.y, point.y, math.nan]
        if point.is_finite and point.y_range is not None:
            xs += [point.x, point.x, math.nan]
            ys += [*_clipped(point.y_range, logit_y), math.nan]
    if xs:
        axes.plot(xs, ys, color=PALETTE[line.colour % len(PALETTE)], linewidth=0.6, alpha=0.4, zorder=1.8)


def _clipped(ends: tuple[float, float], is_logit: bool) -> list[float]:
    return [min(max(end, EDGE), 100 - EDGE) for end in ends] if is_logit else list(ends)


def _symbols(chart: Chart, axes: Axes) -> Iterator[Bbox]:
    """What labels must not cover, in pixels."""
    from matplotlib.transforms import Bbox

    pixels_per_point = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    for line in chart.lines:
        if line.style not in ("curve", "mark"):
            continue
        size = MARK_POINTS.get(line.shape, 5.5) if line.style == "mark" else 2.5
        radius = chart.times_larger(line) * size / 2 * pixels_per_point
        for point in line.points:
            if point.is_finite:
                x, y = axes.transData.transform((point.x, point.y))
                yield Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _spread(points: Sequence[Point]) -> list[Point]:
    """The ends first, then by halves: where there is no room for all, those that stay are spread evenly."""
    if len(points) <= 2:
        return list(points)
    order = [0, len(points) - 1]
    step = 2 ** math.ceil(math.log2(len(points) - 1))
    while step >= 1:
        order += [index for index in range(0, len(points), step) if index not in order]
        step //= 2
    return [points[index] for index in order]


def _paths(chart: Chart, axes: Axes, *, of_curves: bool = False) -> list[Path]:
    """Curves, or the other lines and the confidence bars, in pixels."""
    from matplotlib.path import Path

    if of_curves:
        found = [[(p.x, p.y) for p in line.points if p.is_finite] for line in chart.lines if line.style == "curve"]
    else:
        found = [[(p.x, p.y) for p in line.points if p.is_finite] for line in chart.lines if line.style != "curve"]
        known = list(_points(chart))
        found += [[(end, point.y) for end in point.x_range] for point in known if point.x_range]
        found += [[(point.x, end) for end in point.y_range] for point in known if point.y_range]
    return [Path(axes.transData.transform(vertices)) for vertices in found if len(vertices) > 1]


def _label(axes: Axes, point: Point) -> Annotation:
    return axes.annotate(
        point.label,
        (point.x, point.y),
        textcoords="offset points",
        xytext=(0, 0),
        fontsize=LABEL_SIZE,
        color="0.35",
        parse_math=False,
    )


def _move(text: Annotation, offset: tuple[float, float]) -> Bbox:
    """Put a label so many points from its symbol.

    Returns:
        Where it is then, in pixels.
    """
    dx, dy = offset
    text.set_position(offset)
    text.set_horizontalalignment("center" if dx == 0 else "left" if dx > 0 else "right")
    text.set_verticalalignment("center" if dy == 0 else "bottom" if dy > 0 else "top")
    return text.get_window_extent()


def _is_inside(box: Bbox, frame: Bbox) -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
