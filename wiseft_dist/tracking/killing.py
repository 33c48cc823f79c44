"""Ends of processes that do not end by themselves, with everything that they have started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def kill_children(pid: int | None = None) -> None:
    """Kill everything that a process, or this one, has started."""
    import psutil

    with suppress(psutil.Error):
        children = psutil.Process(pid).children(recursive=True)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        if pid in (None, os.getpid()):
            psutil.wait_procs(children, timeout=1)  # collected here, nobody else has to


def kill_with_children(pid: int) -> None:
    """Kill a process and everything that it has started, itself last."""
    kill_children(pid)
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
