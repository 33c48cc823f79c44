"""Slurm's controller may be away for a while: jobs go on without it, and only its lasting silence is an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from wiseft_dist.errors import RunError

Answer = TypeVar("Answer")
SILENCE_SECONDS = 15 * 60.0
"""How long it may be away while jobs are watched."""
ASKING_AGAIN = "the jobs go on, and it is asked again"


class Patience:
    """Asks Slurm again and again for somebody who watches jobs.

    Args:
        say: Tells the watcher, once that it is away and once that it is back.
        meanwhile: What goes on without it.
    """

    def __init__(self, say: Callable[[str], None], *, meanwhile: str) -> None:
        self._say, self._meanwhile = say, meanwhile
        self._silent_since: float | None = None

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """The answer, or None while there is none.

        Raises:
            RunError: what the question raised, after a silence that was too long.
        """
        now = time.monotonic()
        try:
            answer = question()
        except RunError as error:
            if self._silent_since is None:
                self._silent_since = now
                self._say(f"{error}; {self._meanwhile}")
            if now - self._silent_since > SILENCE_SECONDS:
                raise
            return None
        if self._silent_since is not None:
            self._say(f"Slurm answers again, after {now - self._silent_since:.0f} s")
        self._silent_since = None
        return answer
