"""Progress on standard error: bars for a person at a terminal, elsewhere a line a minute.

Bars nest: those that are open together stand under each other, and share the one line that is told a minute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wiseft_dist.printable import printable
from wiseft_dist.ranks import speaks_for_its_group

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

LINE_SECONDS = 60.0
"""Between two lines, and before the first: what is shorter tells none."""
LOOK_SECONDS = 5.0
"""Between two looks at the clock while nothing moves."""
BAR_WIDTH = 20
BYTES = "bytes"
"""The unit of what is counted in bytes, told as MB, GB or TB."""
_BYTE_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6))

Clock = Callable[[], float]


@dataclass(frozen=True)
class Rated:
    """What a rate is told in, where that is not the unit that is counted: ``samples``, 512 a step."""

    unit: str
    num_per_unit: float


class Bar:
    """One line of progress; every method is cheap and does nothing when nobody watches."""

    def __init__(self, shown: _Shown | None = None, told: _Told | None = None) -> None:
        self._shown, self._told = shown, told

    @property
    def is_visible(self) -> bool:
        """Whether somebody watches at a terminal."""
        return self._shown is not None

    def advance(self, amount: float = 1) -> None:
        """Move forward."""
        if self._shown is not None:
            self._shown.progress.advance(self._shown.task, amount)
        elif self._told is not None:
            self._told.advance(amount)

    def update(self, *, completed: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Set the position, the length or the text beside them; what is not given stays."""
        if self._shown is not None:
            fields: dict[str, Any] = {} if note is None else {"note": note}
            self._shown.progress.update(self._shown.task, completed=completed, total=total, **fields)
        elif self._told is not None:
            self._told.update(completed, total, note)


@contextmanager
def progress_bar(
    description: str,
    *,
    total: float | None = None,
    unit: str = "",
    completed: float = 0,
    rated: Rated | None = None,
    is_main: bool | None = None,
    tells_lines: bool = True,
    clock: Clock = time.monotonic,
) -> Iterator[Bar]:
    """Show work that may take longer than two seconds. Descriptions and notes are shown as they are.

    Args:
        description: What is done.
        total: How much there is to do; None if nobody knows.
        unit: What is counted: ``images``; ``bytes`` are told as MB, GB or TB.
        completed: What was done before, and counts for no rate.
        rated: What the rate is told in, if not in ``unit``.
        is_main: Whether this process of its group speaks; None: the first does, as the environment says.
        tells_lines: False if the caller tells its own where there is no terminal.
        clock: Seconds.
    """
    is_terminal, speaks = sys.stderr.isatty(), speaks_for_its_group() if is_main is None else is_main
    if not speaks or not (is_terminal or tells_lines):
        yield Bar()
    elif is_terminal:
        with _screen() as progress:
            task = progress.add_task(description, total=total, unit=unit, rated=rated, note="")
            progress.update(task, completed=completed)
            try:
                yield Bar(shown=_Shown(progress, task))
            finally:
                progress.remove_task(task)
    else:
        told = _Told(description, unit, rated, completed, total)
        with _LINES.open(told, clock):
            yield Bar(told=told)


@dataclass(frozen=True)
class _Shown:
    progress: Progress
    task: TaskID


@dataclass
class _Told:
    """A bar where there is no terminal."""

    description: str
    unit: str
    rated: Rated | None
    completed: float
    total: float | None
    note: str = ""
    began: float = 0.0
    mark: tuple[float, float] = (0.0, 0.0)
    """When the last line was told, and how much was done then."""

    def advance(self, amount: float) -> None:
        with _LINES.lock:
            self.completed += amount
        _LINES.tell_if_due()

    def update(self, completed: float | None, total: float | None, note: str | None) -> None:
        self.completed = self.completed if completed is None else completed
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        _LINES.tell_if_due()

    def line(self, now: float) -> str:
        """What is to be said now; the rate is of the time since the line before."""
        since, before = self.mark
        speed = (self.completed - before) / (now - since) if now > since else None
        self.mark = (now, self.completed)
        left = None if self.total is None or not speed else (self.total - self.completed) / speed
        parts = [
            counted(self.completed, self.total, self.unit),
            self.note,
            rate(speed, self.unit, self.rated),
            f"{duration(left)} left" if left is not None and left > 0 else "",
        ]
        return f"{self.description}: {', '.join(filter(None, parts)) or f'{duration(now - self.began)} so far'}"


@dataclass
class _Lines:
    """The lines of this process: it has one standard error, however many bars are open."""

    bars: list[_Told] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    clock: Clock = time.monotonic
    due: float = 0.0
    watcher: threading.Thread | None = None
    """Looks now and then, from the first bar to the end of the process: not a thread a bar, because whoever shows one
    often forks right after, and that is no time to begin a thread."""

    @contextmanager
    def open(self, bar: _Told, clock: Clock) -> Iterator[None]:
        with self.lock:
            if not self.bars:
                self.clock, self.due = clock, clock() + LINE_SECONDS
            if self.watcher is None:
                self.watcher = threading.Thread(target=self._tell_while_nothing_moves, daemon=True)
                self.watcher.start()
            bar.began = self.clock()
            bar.mark = (bar.began, bar.completed)
            self.bars.append(bar)
        try:
            yield
        finally:
            with self.lock:
                self.bars.remove(bar)

    def _tell_while_nothing_moves(self) -> None:
        """Loading a file, or waiting for a store, is one call that takes as long as it takes."""
        while True:
            time.sleep(LOOK_SECONDS)
            if self.bars:
                self.tell_if_due()

    def begin_anew(self) -> None:
        """In a forked process, which has neither the bars nor the thread of the one that it came from."""
        self.bars, self.lock, self.watcher = [], threading.Lock(), None

    def tell_if_due(self) -> None:
        now = self.clock()
        if now < self.due:
            return
        with self.lock:
            if now < self.due or not self.bars:
                return
            self.due = now + LINE_SECONDS
            line = "; ".join(bar.line(now) for bar in self.bars)
        print(printable(line), file=sys.stderr, flush=True)


_LINES = _Lines()
os.register_at_fork(after_in_child=_LINES.begin_anew)
_SCREENS: list[Progress] = []
"""The display that is open, if there is one: a terminal has room for one."""


@contextmanager
def _screen() -> Iterator[Progress]:
    """The open display, or a new one."""
    if _SCREENS:
        yield _SCREENS[0]
        return
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        """A column that is a text of the task; where the terminal is narrow, all but the numbers are cut short."""

        def __init__(self, say: Callable[[Task], str], *, is_number: bool = True) -> None:
            super().__init__(table_column=Column(no_wrap=is_number))
            self._say = say

        def render(self, task: Task) -> Text:
            return Text(self._say(task), no_wrap=True, end="")

    class Display(Progress):
        """Bars under each other, and under them the notes, each with a line for itself."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if note := task.fields["note"]:
                    yield Text(printable(note), style="dim", no_wrap=True, overflow="ellipsis")

    columns = (
        Words(lambda task: printable(task.description), is_number=False),
        BarColumn(bar_width=BAR_WIDTH),
        Words(_counted_of),
        Words(_rate_of),
        Words(_left_of),
    )
    with Display(*columns, console=Console(stderr=True), transient=True) as progress:
        _SCREENS.append(progress)
        try:
            yield progress
        finally:
            _SCREENS.remove(progress)


def _counted_of(task: Task) -> str:
    return counted(task.completed, task.total, task.fields["unit"])


def _rate_of(task: Task) -> str:
    return rate(task.finished_speed or task.speed, task.fields["unit"], task.fields["rated"])


def _left_of(task: Task) -> str:
    seconds = task.time_remaining
    return "" if not seconds else f"{duration(seconds)} left"


def counted(completed: float, total: float | None, unit: str) -> str:
    """``120 of 800 steps``, ``1.2 of 4.5 GB``; without a total ``120 steps``; empty if nothing is counted."""
    if not unit:
        return ""
    if unit == BYTES:
        name, size = _byte_unit(completed if total is None else total)
        of = "" if total is None else f" of {total / size:,.1f}"
        return f"{completed / size:,.1f}{of} {name}"
    of = "" if total is None else f" of {total:,.0f}"
    return f"{completed:,.0f}{of} {unit}"


def rate(speed: float | None, unit: str, rated: Rated | None) -> str:
    """``1,480 samples/s``, ``3.41 GB/s``; empty where it is not known, or where nothing moves."""
    if rated is not None and speed is not None:
        speed, unit = speed * rated.num_per_unit, rated.unit
    if not speed or not unit:
        return ""
    if unit == BYTES:
        name, size = ("GB", 1e9) if speed >= 1e8 else ("MB", 1e6)
        return f"{speed / size:,.2f} {name}/s"
    if speed < 1:  # whole things that take longer: each takes so long
        return f"{duration(1 / speed)} each"
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.1f} {unit}/s"


def duration(seconds: float) -> str:
    """``3 d 4 h``, ``1 h 12 min``, ``12 min``, ``43 s``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _byte_unit(num_bytes: float) -> tuple[str, float]:
    return next((entry for entry in _BYTE_UNITS if num_bytes >= entry[1]), _BYTE_UNITS[-1])
