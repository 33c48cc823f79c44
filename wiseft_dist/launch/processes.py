"""Ending processes on this machine together with everything they have started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 10.0
"""How long processes have to tidy up after an interrupt before they are killed."""


def end_processes(roots: Iterable[int], *, reap: Callable[[], object]) -> None:
    """Interrupt processes and their descendants, wait for them, and kill what is left, also if interrupted again.

    Args:
        roots: Process ids.
        reap: Called now and then to collect the ended ones that are children of this process.
    """
    family = _families(roots)
    try:
        _signal(family, signal.SIGINT)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while family & _parents().keys() and time.monotonic() < deadline:
            reap()
            time.sleep(0.05)
    finally:
        _signal(family & _parents().keys(), signal.SIGKILL)
        reap()


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end this process as Ctrl-C does, so that no job is left behind."""
    signals = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL]
    for each in signals:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in signals:
            signal.signal(each, signal.SIG_DFL)


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _families(roots: Iterable[int]) -> set[int]:
    """The processes and all their descendants."""
    parents = _parents()
    family = set(roots) & parents.keys()
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _parents() -> dict[int, int]:
    """The parent of every process that lives, from ``/proc/PID/stat`` (proc_pid_stat(5): state and ppid)."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(file.parent.name)] = int(parent)
    return parents
