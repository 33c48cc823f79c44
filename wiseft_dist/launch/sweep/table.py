"""The table of a sweep: what its runs differ in, what came of it, and which is best on ID-val."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wiseft_dist.launch.sweep.directory import SOUP
from wiseft_dist.launch.sweep.names import short_keys, value_text
from wiseft_dist.launch.sweep.results import Point, Results, Row
from wiseft_dist.launch.sweep.states import NOT_STARTED
from wiseft_dist.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {"zero_shot": "zero-shot", "fixed": "alpha 0.5", "chosen": "on ID-val", "finetuned": "fine-tuned"}
"""Of the columns of accuracies."""
NOTHING = "–"
TABLE_WIDTH = 100
"""Characters of a table in a file."""
CHOICE = (
    "Runs are in the order of ID-val, the held-out piece of the training set, at the alpha that is best there; the "
    "shifts choose neither a run nor an alpha. Beside it: reference / average of the shifts."
)


def show(results: Results, *, as_json: bool = False) -> None:
    """Print the table and what is to be said about it, or all of it as JSON."""
    if as_json:
        print(json.dumps(results.as_dict(), indent=1))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)  # a file has no width of its own
    console.print(results_table(results))
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


def results_table(results: Results) -> Table:
    """A line a run; accuracies in percent."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"Sweep of {len(results.sweep.members)} runs, in percent", pad_edge=False, collapse_padding=True
    )
    short = short_keys(results.sweep.keys)
    for name in short.values():
        table.add_column(escape(name), overflow="fold")
    for name in ("state", "ID-val", "alpha"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for title in TITLES.values():
        table.add_column(title, justify="right", no_wrap=True)
    for row in results.rows:
        cells = [*_settings(row, list(short)), _state(row), _id_val(row, results), _alpha(row)]
        points = [_pair((row.points or {}).get(name)) for name in TITLES]
        table.add_row(*map(escape, [*cells, *points]), style="bold" if row is results.best else None)
    return table


def _settings(row: Row, keys: list[str]) -> list[str]:
    if row.name == SOUP:
        return [SOUP, *("" for _ in keys[1:])]
    return [printable(value_text(row.settings[key])) for key in keys]


def _state(row: Row) -> str:
    word = row.state.state.replace("_", " ")
    return word if row.state.is_finished or not row.state.stage else f"{word} ({row.state.stage})"


def _id_val(row: Row, results: Results) -> str:
    if row.id_val is None:
        return NOTHING
    return f"{'* ' if row is results.best else ''}{_percent(row.id_val)}"


def _alpha(row: Row) -> str:
    chosen = (row.points or {}).get("chosen")
    return NOTHING if chosen is None else f"{chosen.alpha:g}"


def _pair(point: Point | None) -> str:
    if point is None:
        return NOTHING
    known = [_percent(value) for value in (point.reference, point.shift_average) if value is not None]
    return " / ".join(known) or NOTHING


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
