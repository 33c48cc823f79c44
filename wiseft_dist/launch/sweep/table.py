"""The table of a sweep: what its runs differ in, what came of it, and which is best on ID-val."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from wiseft_dist.launch.status_records import NOT_STARTED
from wiseft_dist.launch.sweep.directory import SOUP
from wiseft_dist.launch.sweep.names import short_keys, value_text
from wiseft_dist.launch.sweep.results import Point, Results, Row
from wiseft_dist.printable import printable
from wiseft_dist.terminal import LIMITS, TABLE_WIDTH, fitting, shortened, table_console

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {"zero_shot": "zero-shot", "fixed": "alpha 0.5", "chosen": "on ID-val", "finetuned": "fine-tuned"}
"""Of the columns of accuracies."""
NOTHING = "–"
MAX_VALUE = 200
"""Columns of a value where there is room."""
CHOICE = (
    "Runs are in the order of ID-val, the held-out piece of the training set, at the alpha that is best there; the "
    "shifts choose neither a run nor an alpha. Beside it: reference / average of the shifts."
)


def show(results: Results, *, as_json: bool = False) -> None:
    """Print the table and what is to be said about it, or all of it as JSON."""
    if as_json:
        print(json.dumps(results.as_dict(), indent=1))
        return
    console = table_console()
    console.print(results_table(results, console.width))
    print(summary(results))


def summary(results: Results) -> str:
    """Sentences under the table: how the runs are compared, and what became of those that have no result."""
    best = results.best
    lines = [CHOICE] if best is not None else []
    if best is not None:
        lines.append(f"Best on ID-val: {best.name} ({results.sweep.run(best.name).path})")
    for row in results.failed:
        reason = row.state.reason or "`wiseft sweep` again goes on with it."
        has_failed = any(other is not row and other.state.state != NOT_STARTED for other in results.failed)
        is_soup = row.name == SOUP and has_failed
        others = " With --soup-of-finished it is made without those that failed." if is_soup else ""
        lines.append(printable(f"{row.name}: {row.state.state.replace('_', ' ')}. {reason}{others}"))
    return "\n".join(lines)


def results_table(results: Results, width: int = TABLE_WIDTH) -> Table:
    """A line a run; accuracies in percent.

    Where that is wider than ``width`` columns, long values are shortened in the middle and states told in a word; for
    more settings than find room even so stands the run's name.
    """
    roomy = [partial(_table, results, limit) for limit in (MAX_VALUE, *LIMITS[:-1])]
    tight = [partial(_table, results, limit, is_tight=True) for limit in LIMITS[:-1]]
    with_names = [partial(_table, results, limit, is_tight=True, with_name=True) for limit in LIMITS]
    return fitting([*roomy, *tight, *with_names], width)


def _table(results: Results, limit: int, *, is_tight: bool = False, with_name: bool = False) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"Sweep of {len(results.sweep.members)} runs, in percent", pad_edge=False, collapse_padding=True
    )
    short = short_keys(results.sweep.keys)
    for name in ["run"] if with_name else short.values():
        table.add_column(escape(shortened(name, limit)), no_wrap=True)
    for name in ("state", "ID-val", "alpha"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for title in TITLES.values():
        table.add_column(title, justify="right", no_wrap=True)
    for row in results.rows:
        settings = [printable(row.name)] if with_name else _settings(row, list(short))
        cells = [*(shortened(each, limit) for each in settings), _state(row, in_a_word=is_tight)]
        cells += [_id_val(row, results), _alpha(row)]
        cells += [_pair((row.points or {}).get(name), "/" if is_tight else " / ") for name in TITLES]
        table.add_row(*map(escape, cells), style="bold" if row is results.best else None)
    return table


def _settings(row: Row, keys: list[str]) -> list[str]:
    if row.name == SOUP:
        return [SOUP, *("" for _ in keys[1:])]
    return [printable(value_text(row.settings[key])) for key in keys]


def _state(row: Row, *, in_a_word: bool) -> str:
    word = row.state.state.replace("_", " ")
    has_stage = row.state.stage and not row.state.is_finished and not in_a_word
    return printable(f"{word} ({row.state.stage})" if has_stage else word)


def _id_val(row: Row, results: Results) -> str:
    if row.id_val is None:
        return NOTHING
    return f"{'* ' if row is results.best else ''}{_percent(row.id_val)}"


def _alpha(row: Row) -> str:
    chosen = (row.points or {}).get("chosen")
    return NOTHING if chosen is None else f"{chosen.alpha:g}"


def _pair(point: Point | None, between: str) -> str:
    if point is None:
        return NOTHING
    known = [_percent(value) for value in (point.reference, point.shift_average) if value is not None]
    return between.join(known) or NOTHING


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
