"""A chart's numbers as a table, for those who do not see the chart."""

from __future__ import annotations

from collections.abc import Iterator

from wiseft_dist.report.page.charts import Chart, Point
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.page.text import number_text


def numbers_of(chart: Chart) -> Section:
    """Every point, but for lines that are only drawn to compare with, dotted or dashed: the line, x, y."""
    columns = ("line", chart.x_label, chart.y_label)
    return Section(f"{chart.title}: the numbers", columns, tuple(_rows(chart)))


def _rows(chart: Chart) -> Iterator[Row]:
    for line in chart.lines:
        if line.style in ("dotted", "dashed") or (line.style == "mark" and not line.name):
            continue  # what has a large symbol and no name of its own is a point of another line too
        called = line.name or chart.title
        for point in line.points:
            name = f"{called}, {point.label}" if point.label and point.label != called else called
            yield Row(name, tuple(_cells(point)))


def _cells(point: Point) -> Iterator[Cell]:
    for value, ends in ((point.x, point.x_range), (point.y, point.y_range)):
        yield Cell(number_text(value), f"({ends[0]:.4g} to {ends[1]:.4g})" if ends else "", value)
