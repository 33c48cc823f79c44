"""Being told to stop: a signal becomes a saved checkpoint first, and then what it would have been without us."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

from wiseft_dist.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What tells a run to stop, by rising priority: submitit requeues a job at SIGUSR2."""
ECHO_SECONDS = 1.0
"""A terminal interrupts every process of a job, and so does the one that started them: that is one interrupt."""


class StopRequest:
    """While it is entered, signals to stop only leave a note; a second interrupt stops at once.

    Args:
        ranks: This process's place.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._before: dict[signal.Signals, Any] = {}
        self._first_interrupt: float | None = None
        self.told = 0
        """0 for no, else the largest place in :data:`SIGNALS`, from 1, of the signals that came to this rank."""

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_interrupt is not None and now - self._first_interrupt > ECHO_SECONDS:
                raise KeyboardInterrupt
            self._first_interrupt = self._first_interrupt or now
        if not self.told:
            sentence = (
                f"wiseft: rank {self._ranks.rank} got {signal.Signals(number).name}: saving a checkpoint before "
                "stopping; interrupt again to stop at once.\n"
            )
            os.write(2, sentence.encode())  # Python's own stream may be in the middle of a line
        self.told = max(self.told, SIGNALS.index(signal.Signals(number)) + 1)

    def hand_over(self, told: int) -> NoReturn:
        """After leaving it: what the signal that the ranks agreed on would have done.

        Whoever handled it before is called on every rank. Submitit requeues the job from rank 0, and on other ranks
        returns: those end quietly, because an error of theirs would end the job before it is requeued.

        Raises:
            KeyboardInterrupt: if nobody had asked for that signal.
            SystemExit: otherwise.
        """
        number = SIGNALS[told - 1]
        handler = self._before[number]
        for later in (signal.SIGTERM, signal.SIGUSR2):  # a requeue sends one to the job that asked for it
            signal.signal(later, signal.SIG_IGN)
        if not callable(handler) or handler is signal.default_int_handler:
            raise KeyboardInterrupt
        handler(number, None)
        raise SystemExit(0)
