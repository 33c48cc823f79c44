"""The table that ends a run: zero-shot, fine-tuned, and the ensembles worth naming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wiseft_dist.report.wording import NOTHING, column_name, is_all_top1, is_known, shown_datasets

if TYPE_CHECKING:
    from rich.table import Table

    from wiseft_dist.evaluate.statistics.selection import Choice
    from wiseft_dist.evaluate.statistics.statistics import Statistics


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


def summary_table(statistics: Statistics) -> Table:
    """Each dataset's own metric in percent; a column for the reference, the shifts' average and every shift."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Top-1 accuracy (%)" if is_all_top1(statistics) else "Top-1 accuracy (%), or what is named")
    table.add_column("model")
    for column in ("alpha", *_columns(statistics)):
        table.add_column(escape(column), justify="right")
    for name, alpha in named_alphas(statistics).items():
        table.add_row(name, f"{alpha:g}", *map(_percent, _values(statistics, alpha)))
    return table


def _columns(statistics: Statistics) -> Iterator[str]:
    for name in shown_datasets(statistics):
        if statistics.shifts and name == statistics.shifts[0]:
            yield "shift avg"
        yield column_name(statistics, name)


def _values(statistics: Statistics, alpha: float) -> Iterator[float]:
    """Fractions, one a column."""
    for name in shown_datasets(statistics):
        average = statistics.shift_average_at(alpha)
        if average is not None and name == statistics.shifts[0]:
            yield average.value
        yield statistics.datasets[name].at(alpha).value


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if is_known(fraction) else NOTHING
