"""Processes on this machine: ended together with everything they have started, or left in the background."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PATIENCE_SECONDS = 10.0
"""How long processes have to tidy up after an interrupt before they are killed."""


def end_processes(roots: Iterable[int], *, reap: Callable[[], object]) -> None:
    """Interrupt processes and their descendants, wait for them, and kill what is left, also if interrupted again.

    Args:
        roots: Process ids.
        reap: Called to collect the ended ones that are children of this process.
    """
    family = _families(roots)
    try:
        _signal(family, signal.SIGINT)
        psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    finally:
        _signal(family, signal.SIGKILL)
        reap()


def start_in_background(command: Sequence[str], log: Path) -> int:
    """Start a process that survives this terminal and appends what it says to a log; returns its id."""
    with log.open("a") as handle:
        process = subprocess.Popen(
            command, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return process.pid


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


@contextmanager
def signals_held() -> Iterator[None]:
    """Let nothing that asks this process to end come in between; it is answered after the block, as it would have been.

    Programs that are started meanwhile are spared as well: Ctrl-C reaches all processes of a terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in ENDING_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)  # the programs inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _families(roots: Iterable[int]) -> list[psutil.Process]:
    """The processes that still live, and all their descendants."""
    family = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            family += [process, *process.children(recursive=True)]
    return family
