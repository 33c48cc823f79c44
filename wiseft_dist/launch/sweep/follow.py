"""Watching a sweep on Slurm until no job of it waits or runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from wiseft_dist.config import LaunchConfig
from wiseft_dist.launch.outcomes import Outcome
from wiseft_dist.launch.patience import ASKING_AGAIN, Patience
from wiseft_dist.launch.sweep.directory import Sweep
from wiseft_dist.launch.sweep.states import RunState, run_states
from wiseft_dist.printable import printable
from wiseft_dist.progress import progress_bar
from wiseft_dist.run import Run

POLL_SECONDS = 5.0


def follow(sweep: Sweep, runs: Sequence[Run], launch: LaunchConfig) -> None:
    """Tell of runs as they end; a run whose jobs have ended gets time to show its result.

    Raises:
        RunError: if Slurm stays silent.
    """
    watch = _Watch(sweep, launch.visible_seconds)
    left = list(runs)
    with progress_bar("sweep", total=len(runs), unit="runs") as bar:
        while left:
            states = watch.look(left)
            for run, state in zip(list(left), states, strict=True):
                if watch.is_over(run, state):
                    left.remove(run)
                    bar.advance()
                    _say(_ending(state))
            bar.update(note=_counts(states))
            if left:
                time.sleep(POLL_SECONDS)


class _Watch:
    """What is remembered between two looks."""

    def __init__(self, sweep: Sweep, visible_seconds: float) -> None:
        self._sweep, self._visible_seconds = sweep, visible_seconds
        self._ended: dict[Run, float] = {}
        self._patience = Patience(_say, meanwhile=ASKING_AGAIN)

    def look(self, runs: Sequence[Run]) -> list[RunState]:
        """The state of runs; a controller that is away for a while is waited for."""
        while (states := self._patience.ask(lambda: run_states(self._sweep, runs))) is None:
            time.sleep(POLL_SECONDS)
        return states

    def is_over(self, run: Run, state: RunState) -> bool:
        """Whether nothing more comes of a run: its result is there, or has had time to show up."""
        if state.is_finished or state.state in (Outcome.blocked, Outcome.cancelled):
            return True
        if not state.has_ended:
            self._ended.pop(run, None)
            return False
        since = self._ended.setdefault(run, time.monotonic())
        is_told = state.state == Outcome.failed and "Its last words" in state.reason
        return is_told or time.monotonic() - since > self._visible_seconds


def _ending(state: RunState) -> str:
    if state.is_finished:
        return f"{state.name}: done"
    return f"{state.name}: {state.state.replace('_', ' ')} in {state.stage or 'its first stage'}"


def _counts(states: Sequence[RunState]) -> str:
    counts: dict[str, int] = {}
    for state in states:
        word = state.state.replace("_", " ") + (f" ({state.stage})" if state.stage else "")
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
