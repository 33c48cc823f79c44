"""A rank that stalls ends the job, by name: each rank tells how far it is, and who waits too long asks the others."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Literal, ParamSpec, TypeVar

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from wiseft_dist.ranks import Ranks
from wiseft_dist.tracking import append_event

Doing = Literal["starting", "data", "computing", "saving", "validating"]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAX_INTERVAL_SECONDS = 5.0
"""Longest time between two signs of life."""
INTERVALS_A_TIMEOUT = 12
QUIET_LOOKS = 3
"""Looks at a rank without a new sign of life, after which it counts as gone."""
MAX_NAMED = 8


@dataclass(frozen=True)
class Beat:
    """How far a rank was when it last told."""

    host: str
    step: int
    phase: Doing
    count: int = 0
    """Signs of life before this one."""


class Watchdog:
    """While it is entered, ends this process with exit code 1 when its training makes no progress for too long.

    Waiting is counted in intervals in which this process ran, so that a job may be suspended as a whole.

    Args:
        events_file: Where the reason is written.
        ranks: This process's place.
        timeout_minutes: How long a rank may do one thing.
    """

    def __init__(self, events_file: Path, ranks: Ranks, *, timeout_minutes: float) -> None:
        self._events_file, self._ranks, self._minutes = events_file, ranks, timeout_minutes
        self._interval = min(MAX_INTERVAL_SECONDS, 60 * timeout_minutes / INTERVALS_A_TIMEOUT)
        self._max_waits = round(60 * timeout_minutes / self._interval)
        self._done = Event()
        self._progress = 0
        self._waits = 0
        self._now = Beat(socket.gethostname(), 0, "starting")
        self._others = _Others(ranks)
        self._threads: list[Thread] = []

    def __enter__(self) -> Watchdog:
        self._threads = [Thread(target=work, daemon=True) for work in (self._watch, self._tell)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(self._interval)  # a thread that is in the store when Python ends would make it crash

    def enter(self, phase: Doing, step: int) -> None:
        """The training thread goes on to something else."""
        self._now = Beat(self._now.host, step, phase)
        self._progress += 1

    def noticing(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The same function; each call counts as progress."""

        def noticed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            self._progress += 1
            return function(*args, **kwargs)

        return noticed

    def _watch(self) -> None:
        """The one thread that decides; it touches nothing that could make it wait."""
        before = self._progress
        while not self._done.wait(self._interval):
            self._others.age()
            self._waits = self._waits + 1 if self._progress == before else 0
            before = self._progress
            if self._waits >= self._max_waits:
                self._end()

    def _tell(self) -> None:
        """A thread of its own, because a store that does not answer makes it wait for ever."""
        if self._ranks.world_size == 1:
            return
        try:
            self._others.connect()
            while not self._done.wait(self._interval):
                self._others.tell(self._now)
                if self._waits > self._max_waits // 2:
                    self._others.look()
                else:
                    self._others.forget()
        except (DistError, RuntimeError, ValueError):
            return  # rank 0 is gone; should this rank still wait for anything, the other thread says so

    def _end(self) -> None:
        alone = self._ranks.world_size == 1
        stalled, reason = accuse({self._ranks.rank: self._now}) if alone else self._others.accuse(self._now)
        sentence = f"no progress for {self._minutes:g} minutes (distributed.timeout_minutes): {reason}."
        append_event(
            self._events_file, stage="finetune", event="failed", kind="RunError", error=sentence, stalled=stalled
        )
        print(f"wiseft: rank {self._ranks.rank}: {sentence}", file=sys.stderr, flush=True)
        os._exit(1)  # the training thread may never come back to hear of it


@dataclass
class _Others:
    """What is known of the other ranks, through the store that the process group met at."""

    ranks: Ranks
    _store: Store | None = None
    _told: int = 0
    _looks_missed: int = 0
    _beats: dict[int, Beat] = field(default_factory=dict)
    _quiet: dict[int, int] = field(default_factory=dict)
    """Looks since a rank's last sign of life."""

    def connect(self) -> None:
        """Over a connection of this thread's own: the training thread's may be waiting."""
        address, port = self.ranks.master_address, self.ranks.master_port
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(minutes=1))
        self._store = PrefixStore("wiseft_watchdog", store)

    def tell(self, beat: Beat) -> None:
        assert self._store is not None
        self._told += 1
        self._store.set(str(self.ranks.rank), json.dumps(asdict(beat) | {"count": self._told}))

    def look(self) -> None:
        """Ask for every rank's last sign of life."""
        assert self._store is not None
        for rank in range(self.ranks.world_size):
            if rank == self.ranks.rank:
                continue
            beat = Beat(**json.loads(self._store.get(str(rank)))) if self._store.check([str(rank)]) else None
            self._quiet[rank] = self._quiet.get(rank, -1) + 1 if beat == self._beats.get(rank) else 0
            if beat is not None:
                self._beats[rank] = beat
        self._looks_missed = 0

    def forget(self) -> None:
        """All is well: what was seen is no evidence later."""
        self._beats, self._quiet = {}, {}
        self._looks_missed = 0

    def age(self) -> None:
        """An interval has passed; a look should have come back."""
        self._looks_missed += 1

    def accuse(self, own: Beat) -> tuple[list[int], str]:
        if self._looks_missed > QUIET_LOOKS:
            return [0], f"rank 0, at {self.ranks.master_address}, does not answer"
        heard = {rank for rank, looks in self._quiet.items() if looks < QUIET_LOOKS}
        return accuse(
            {
                rank: own if rank == self.ranks.rank else self._beats.get(rank) if rank in heard else None
                for rank in range(self.ranks.world_size)
            },
            self._beats,
        )


def accuse(beats: Mapping[int, Beat | None], last_words: Mapping[int, Beat] | None = None) -> tuple[list[int], str]:
    """Who holds the others up.

    Args:
        beats: Of every rank; nothing for those that give no sign of life.
        last_words: What those told before.

    Returns:
        Ranks and a sentence about them: those that are gone, else those that wait for data at the earliest step, else
        those at the earliest step. Where all are at the same, nobody in particular.
    """
    gone = [rank for rank, beat in beats.items() if beat is None]
    if gone:
        words = last_words or {}
        return gone, _named(gone, {rank: words[rank] for rank in gone if rank in words}, "gives no sign of life")
    alive = {rank: beat for rank, beat in beats.items() if beat is not None}
    earliest = min(beat.step for beat in alive.values())
    late = [rank for rank, beat in alive.items() if beat.step == earliest]
    late = [rank for rank in late if alive[rank].phase == "data"] or late
    if len(late) == len(alive) > 1:
        return [], f"all {len(alive)} ranks are at step {earliest} ({alive[late[0]].phase}), and none gets on"
    return late, _named(late, alive, "holds the others up" if len(alive) > 1 else "does not get on")


def _named(ranks: list[int], beats: Mapping[int, Beat], what: str) -> str:
    """``rank 3 (gpu07, step 12, data) gives no sign of life``."""
    named = [
        f"rank {rank} ({beats[rank].host}, step {beats[rank].step}, {beats[rank].phase})"
        if rank in beats
        else f"rank {rank}"
        for rank in ranks[:MAX_NAMED]
    ]
    more = f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else ""
    return f"{', '.join(named)}{more}: {what}" if len(ranks) > 1 else f"{named[0]} {what}"
