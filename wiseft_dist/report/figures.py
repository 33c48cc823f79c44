"""Figures for a paper, as PNG, SVG and PDF: the trade-off curve, the same on logit axes, and a small one a dataset.

Sized for a column (or, with one panel a dataset, for both columns) at the size of small print; text stays text; colours
are told apart by the colour-blind. The same numbers give the same bytes: no date is in a file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.curves import dataset_charts, trade_off
from wiseft_dist.report.page.charts import Chart
from wiseft_dist.report.page.text import shown
from wiseft_dist.run import FIGURE_FORMATS, FIGURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLUMN_INCHES = 3.4
PAGE_INCHES = 7.0
PANEL_INCHES = 1.65
"""Height of a row of panels."""
PANELS_BESIDE = 4
PANEL_LETTERS = 26
"""That find room over a panel."""
LEGEND_POINTS = 5.5
"""Of a symbol in the legend."""
DPI = 300
"""Of the PNG."""
SHORT_NAMES = {"ensembles of weights, one point an alpha": "ensembles"}
"""Of legends, which have the width of a column."""
METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "wiseft",
    "pdf.fonttype": 42,
}
"""Fonts of 42 are TrueType: publishers refuse others, and their text can be searched and edited."""


def draw_figures(statistics: Statistics, folder: Path) -> None:
    """Draw every figure of a report in every format; see :data:`wiseft_dist.run.FIGURES`."""
    with _drawing():
        curve = _shown(trade_off(statistics))
        _save(_one(curve, "linear"), folder, FIGURES[0])
        _save(_one(curve, "logit"), folder, FIGURES[1])
        _save(_many([_shown(chart) for chart in dataset_charts(statistics)]), folder, FIGURES[2])


def _shown(chart: Chart) -> Chart:
    """With texts, which are from anywhere, as files may hold them: without control characters and other unseen ones."""
    lines = tuple(replace(line, name=shown(line.name)) for line in chart.lines)
    texts = (shown(chart.title), shown(chart.x_label), shown(chart.y_label))
    return replace(chart, title=texts[0], x_label=texts[1], y_label=texts[2], lines=lines)


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font has not
        yield


def _one(chart: Chart, scale: str) -> Figure:
    """The paper's figure, for a column."""
    from matplotlib.figure import Figure

    from wiseft_dist.report.drawn_chart import draw, label_points

    figure = Figure(figsize=(COLUMN_INCHES, 0.74 * COLUMN_INCHES), layout="constrained")
    axes = figure.subplots()
    draw(chart, axes, is_logit=scale == "logit")
    axes.set_xlabel(chart.x_label, parse_math=False)
    axes.set_ylabel(chart.y_label, parse_math=False)
    _add_legend(figure, [axes])
    label_points(chart, axes)
    return figure


def _many(charts: Sequence[Chart]) -> Figure:
    """A panel a dataset, for the width of a page."""
    from matplotlib.figure import Figure

    from wiseft_dist.report.drawn_chart import draw

    num_beside = max(1, min(PANELS_BESIDE, len(charts)))
    num_rows = max(1, math.ceil(len(charts) / num_beside))
    width = max(COLUMN_INCHES, PAGE_INCHES * num_beside / PANELS_BESIDE)
    figure = Figure(figsize=(width, PANEL_INCHES * num_rows + 0.3), layout="constrained")
    panels = figure.subplots(num_rows, num_beside, squeeze=False).flatten().tolist()
    for chart, axes in zip(charts, panels, strict=False):
        draw(chart, axes, is_logit=False)
        axes.set_title(_cut(chart.title), parse_math=False)
        axes.set_xlabel(_cut(chart.x_label), parse_math=False, fontsize=6)
        axes.set_ylabel(_cut(chart.y_label), parse_math=False, fontsize=6)
    for axes in panels[len(charts) :]:
        axes.set_axis_off()
    _add_legend(figure, panels)
    return figure


def _cut(text: str) -> str:
    from wiseft_dist.terminal import shortened

    return shortened(text, PANEL_LETTERS)


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Under the axes, where it covers nothing, with as many columns as find room."""
    entries = _entries(panels)
    if not entries:
        return
    for num_columns in (4, 3, 2, 1):
        in_order = _long_first(entries, num_columns)
        legend = figure.legend(
            list(in_order.values()),
            list(in_order),
            loc="outside lower center",
            ncols=num_columns,
            frameon=False,
            handlelength=1.6,
            columnspacing=1.0,
            labelspacing=0.3,
            borderpad=0.2,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        if num_columns == 1 or legend.get_window_extent().width <= figure.get_figwidth() * figure.dpi:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def _entries(panels: Sequence[Axes]) -> dict[str, Line2D]:
    """A symbol for each name, of a size of its own."""
    from matplotlib.lines import Line2D

    found: dict[str, Line2D] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            assert isinstance(handle, Line2D)
            symbol = copy(handle)
            symbol.set_markersize(min(symbol.get_markersize(), LEGEND_POINTS))
            found.setdefault(SHORT_NAMES.get(label, label), symbol)
    return found


def _long_first(entries: Mapping[str, Line2D], num_columns: int) -> dict[str, Line2D]:
    """The long names in the first column, so that two fit beside each other; otherwise as they came."""
    if num_columns != 2:
        return dict(entries)
    of_length = sorted(entries, key=len, reverse=True)
    first = of_length[: math.ceil(len(entries) / 2)]
    return {name: entries[name] for name in sorted(entries, key=lambda name: name not in first)}


def _save(figure: Figure, folder: Path, name: str) -> None:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out: the formats need not do it again
    for suffix in FIGURE_FORMATS:
        figure.savefig(folder / f"{name}.{suffix}", dpi=DPI, metadata=METADATA[suffix])
