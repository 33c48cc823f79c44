"""The table that ends a run: zero-shot, fine-tuned, and the ensembles worth naming."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from wiseft_dist.printable import printable
from wiseft_dist.report.wording import NOTHING, column_name, is_all_top1, is_known, shown_datasets
from wiseft_dist.terminal import LIMITS, TABLE_WIDTH, fitting, shortened

if TYPE_CHECKING:
    from rich.table import Table

    from wiseft_dist.evaluate.statistics.selection import Choice
    from wiseft_dist.evaluate.statistics.statistics import Statistics

MAX_NAME = 200
SHORT_NAMES = {
    "zero-shot": "zero-shot",
    "fine-tuned": "fine-tuned",
    "ensemble, fixed": "fixed",
    "ensemble, chosen on ID-val": "on ID-val",
    "ensemble, oracle (saw the shifts)": "oracle",
}
"""Of :func:`named_alphas`, where they head columns."""
CAPTION = "fixed, on ID-val, oracle: ensembles, by how their alpha was chosen; the oracle saw the shifts"


def choice(statistics: Statistics, name: str) -> Choice | None:
    """A choice by its name, where there is one."""
    return next((choice for choice in statistics.choices if choice.name == name), None)


def named_alphas(statistics: Statistics) -> dict[str, float]:
    """The rows of the table, in order."""
    rows = {}
    if 0.0 in statistics.alphas:
        rows["zero-shot"] = 0.0
    if 1.0 in statistics.alphas:
        rows["fine-tuned"] = 1.0
    if fixed := choice(statistics, "fixed"):
        rows["ensemble, fixed"] = fixed.alpha
    if id_val := choice(statistics, "id_val"):
        rows["ensemble, chosen on ID-val"] = id_val.alpha
    if oracle := choice(statistics, "oracle"):
        rows["ensemble, oracle (saw the shifts)"] = oracle.alpha
    return rows


def summary_table(statistics: Statistics, width: int = TABLE_WIDTH) -> Table:
    """Each dataset's own metric in percent, for the reference, the shifts' average and every shift.

    A row a model; where that is wider than ``width`` columns, a row a dataset, with long names shortened in the middle.
    """
    rows_of_datasets = [partial(_rows_of_datasets, statistics, limit) for limit in (MAX_NAME, *LIMITS)]
    return fitting([partial(_rows_of_models, statistics), *rows_of_datasets], width)


def _rows_of_models(statistics: Statistics) -> Table:
    table = _empty_table(statistics, "model", ("alpha", *_columns(statistics)))
    for name, alpha in named_alphas(statistics).items():
        table.add_row(name, f"{alpha:g}", *map(_percent, _values(statistics, alpha)))
    return table


def _rows_of_datasets(statistics: Statistics, limit: int) -> Table:
    from rich.markup import escape

    named = named_alphas(statistics)
    table = _empty_table(statistics, "dataset", [SHORT_NAMES[name] for name in named])
    if any(name.startswith("ensemble") for name in named):
        table.caption = CAPTION
    table.add_row("alpha", *(f"{alpha:g}" for alpha in named.values()), end_section=True)
    for name, values in zip(
        _columns(statistics), zip(*(_values(statistics, alpha) for alpha in named.values()), strict=True), strict=True
    ):
        table.add_row(escape(shortened(name, limit)), *map(_percent, values))
    return table


def _empty_table(statistics: Statistics, first: str, columns: Iterable[str]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Top-1 accuracy (%)" if is_all_top1(statistics) else "Top-1 accuracy (%), or what is named")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(escape(column), justify="right", no_wrap=True)
    return table


def _columns(statistics: Statistics) -> Iterator[str]:
    for name in shown_datasets(statistics):
        if statistics.shifts and name == statistics.shifts[0]:
            yield "shift avg"
        yield printable(column_name(statistics, name))


def _values(statistics: Statistics, alpha: float) -> Iterator[float]:
    """Fractions, one a column."""
    for name in shown_datasets(statistics):
        average = statistics.shift_average_at(alpha)
        if average is not None and name == statistics.shifts[0]:
            yield average.value
        yield statistics.datasets[name].at(alpha).value


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if is_known(fraction) else NOTHING
