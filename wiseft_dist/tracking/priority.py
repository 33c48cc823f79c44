"""While a stage computes, its mirror and W&B's own process leave the processors to it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

LOWEST = 19
ORDINARY, LOW = 0, 10
"""Of a session. Low has a tenth of what an ordinary one gets where both want everything: enough to begin with."""
ATTEMPTS, PAUSE_SECONDS = 10, 0.1
"""Linux lets one session of a machine be changed in a tenth of a second."""


def give_way() -> None:
    """Lower the priority of this process; what it starts in a session of its own waits for :func:`all_give_way`."""
    os.nice(LOWEST)
    _set_session("self", LOW)


def all_give_way() -> None:
    """Lower the priority of this process's session and of those that its children have begun."""
    _set_sessions(LOW)


def take_turns() -> None:
    """Undo that for the sessions: the stage has ended, and waits."""
    _set_sessions(ORDINARY)


def _set_sessions(nice: int) -> None:
    import psutil

    _set_session("self", nice)
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            _set_session(str(child.pid), nice)


def _set_session(pid: str, nice: int) -> None:
    """Where Linux shares the processors between sessions first, a process's priority counts within its session only.

    Source: sched(7), "The autogroup feature". A new session has the ordinary priority, whoever begins it.
    """
    for _ in range(ATTEMPTS):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))
            return
        except BlockingIOError:
            time.sleep(PAUSE_SECONDS)
        except OSError:  # they are not shared so, or the process is gone
            return
