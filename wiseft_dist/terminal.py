"""Tables for people: no wider than 100 columns, or than the terminal, and no row on two lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TABLE_WIDTH = 100
"""Columns of a table, and of one in a file or a pipe, which have no width of their own."""
LIMITS = (60, 50, 40, 32, 26, 20, 16, 12, 8)
"""Columns that names are shortened to, the first of them that makes a table fit."""
ELLIPSIS = "…"


def table_console() -> Console:
    """What tables are printed on."""
    from rich.console import Console

    console = Console()
    return Console(width=min(console.width, TABLE_WIDTH) if console.is_terminal else TABLE_WIDTH)


def fitting(candidates: Iterable[Callable[[], Table]], width: int) -> Table:
    """The first table that is not wider than ``width`` columns, or else the last."""
    table = None
    for make in candidates:
        table = make()
        if table_width(table) <= width:
            break
    assert table is not None
    return table


def table_width(table: Table) -> int:
    """Columns that a table takes if nothing in it is wrapped."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=100_000)
    return Measurement.get(console, console.options, table).maximum


def shortened(text: str, width: int, *, at: float = 0.5) -> str:
    """``text`` in at most ``width`` columns: of a longer one the middle is left out, or what stands at ``at``.

    Wide characters, such as Chinese ones, take two columns.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    before = int((width - 1) * at)
    after = width - 1 - before
    start = set_cell_size(text, before).rstrip()
    end = set_cell_size(text[::-1], after).rstrip()[::-1] if after else ""
    return f"{start}{ELLIPSIS}{end}"
