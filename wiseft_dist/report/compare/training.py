"""How the runs were trained and what they cost, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from wiseft_dist.report.compare.figure import look_of
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.page.charts import Chart, Line, Point
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.sections.selection import cost_sections
from wiseft_dist.report.sections.training import CURVES, NAMES, TITLES, series_points, series_scales, series_style
from wiseft_dist.report.wording import NOTHING

HOURS = ("GPU-hours", "CPU process-hours")
"""Columns of the table of costs that add up over stages."""


def training_sections(runs: Sequence[Compared]) -> Iterator[Section]:
    """The curves of all runs over steps, a chart for each metric; none where nothing was logged."""
    for stage, title in TITLES.items():
        charts = tuple(
            chart
            for what, label, metrics, factor in CURVES
            for metric in metrics
            if (chart := _chart(runs, stage, what, label, metric, factor)) is not None
        )
        if charts:
            yield Section(title, charts=charts, note="A step of one run may be of more samples than a step of another.")


def cost_section(runs: Sequence[Compared]) -> Iterator[Section]:
    """What each run cost, stage by stage and in all."""
    rows: list[Row] = []
    section = None
    for run in runs:
        for section in cost_sections(run.history):
            rows += [replace(row, name=f"{run.name}, {row.name}", value=None) for row in section.rows]
            rows.append(_total(run.name, section))
    if section is not None:
        note = f"{section.note} Runs of a sweep may have been at work side by side on one machine."
        yield replace(section, rows=tuple(rows), columns=("run, stage", *section.columns[1:]), note=note)


def _total(name: str, section: Section) -> Row:
    """Hours add up; the times of stages may overlap."""
    cells = []
    for place, column in enumerate(section.columns[1:]):
        total = sum(row.cells[place].value or 0.0 for row in section.rows)
        cells.append(Cell(f"{total:,.3f}" if total else NOTHING, value=total) if column in HOURS else Cell(""))
    return Row(f"{name}, in all", tuple(cells))


def _chart(runs: Sequence[Compared], stage: str, what: str, label: str, metric: str, factor: float) -> Chart | None:
    lines = []
    for index, run in enumerate(runs):
        training = run.history.trainings.get(stage)
        series = training.series.get(metric) if training is not None else None
        if series:
            look = look_of(index)
            points = tuple(_named(run.name, point) for point in series_points(series, label, factor))
            lines.append(Line(run.name, points, series_style(series), look.colour, look.shape))
    of = f", {NAMES[metric]}" if metric in NAMES else ""
    scales = series_scales(what, lines)
    return Chart(what + of, "step", label, tuple(lines), scales, is_small=True) if lines else None


def _named(name: str, point: Point) -> Point:
    return replace(point, text=f"{name}, {point.text}")
