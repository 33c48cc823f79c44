"""Progress bars on standard error: for a person at a terminal, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """One line of progress; every method is cheap and does nothing when nobody watches."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    @property
    def is_visible(self) -> bool:
        """Whether somebody watches."""
        return self._progress is not None

    def advance(self, amount: float = 1) -> None:
        """Move forward."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def update(self, *, completed: float | None = None, total: float | None = None, note: str = "") -> None:
        """Set the position, the length or the text at the end of the line."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=completed, total=total, note=escape(note))


@contextmanager
def progress_bar(description: str, *, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """A bar for work that may take longer than two seconds. Descriptions and notes are shown as they are."""
    if not sys.stderr.isatty():
        yield Bar(None, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task(escape(description), total=total, note=""))
