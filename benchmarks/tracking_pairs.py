"""What a mirror costs the training beside it, measured within one training: it is stopped and goes on in turns.

Two trainings one after the other differ by more than W&B may cost, on any machine that does something else too. Two
neighbouring seconds of one training do not. What a stopped mirror leaves undone it does in the next second, so that
the running ones bear all of it: the ratio is a lower bound.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import psutil

MIRROR = "wiseft_dist.tracking.mirror"
SEGMENT_SECONDS = 1.0
LEAVING_SECONDS = 30.0
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Segment:
    """A piece of a training, in seconds since 1970."""

    start: float
    end: float


@dataclass(frozen=True)
class Alternated:
    """A training beside which a mirror was stopped and went on in turns."""

    pairs: list[tuple[Segment, Segment]]
    """Neighbours: with the mirror at work, and without."""
    start_cpu_seconds: float
    """Which the mirror and W&B's own process had taken before."""
    cpu_percent: float
    """Of one core, which they took while they were at work."""


def alternate(training: psutil.Process, *, num_pairs: int) -> Alternated:
    """Stop what the training has started for W&B, and let it go on, so many times; it is at work in the end."""
    before, pairs = _cpu_seconds(training), []
    for number in range(num_pairs):
        halves = {is_at_work: _segment(training, is_at_work) for is_at_work in (number % 2 == 0, number % 2 == 1)}
        pairs.append((halves[True], halves[False]))
    _send(training, signal.SIGCONT)
    at_work = sum(pair[0].end - pair[0].start for pair in pairs)
    return Alternated(pairs, before, 100 * (_cpu_seconds(training) - before) / at_work)


def end(training: psutil.Process) -> None:
    """Kill a training; its mirror ends by itself."""
    with suppress(psutil.NoSuchProcess):
        tree = _mirror_of(training)
        training.kill()
        psutil.wait_procs([training, *tree], timeout=LEAVING_SECONDS)


def figures(alternated: Alternated, rate_in: Callable[[Segment], float | None]) -> dict[str, Any]:
    """The median ratio of the rates with and without, and its 95 % interval (bootstrap over the pairs)."""
    rates = [(rate_in(with_mirror), rate_in(without)) for with_mirror, without in alternated.pairs]
    ratios = [one / other for one, other in rates if one is not None and other is not None]
    if len(ratios) < len(rates) / 2:
        sys.exit("benchmarks.tracking: in most seconds the training was too slow to be measured: is the machine busy?")
    low, high = _interval(ratios)
    return {
        "ratio": round(median(ratios), 4),
        "interval": [round(low, 4), round(high, 4)],
        "pairs": len(ratios),
        "mirror_cpu_percent": round(alternated.cpu_percent, 2),
        "mirror_start_cpu_seconds": round(alternated.start_cpu_seconds, 1),
    }


def _mirror_of(training: psutil.Process) -> list[psutil.Process]:
    """The mirror and what it has started; nothing where W&B is disabled."""
    mirrors = [child for child in training.children() if MIRROR in child.cmdline()]
    return [process for mirror in mirrors for process in (mirror, *mirror.children(recursive=True))]


def _segment(training: psutil.Process, is_at_work: bool) -> Segment:
    _send(training, signal.SIGCONT if is_at_work else signal.SIGSTOP)
    start = time.time()
    time.sleep(SEGMENT_SECONDS)
    return Segment(start, time.time())


def _send(training: psutil.Process, number: signal.Signals) -> None:
    for process in _mirror_of(training):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _cpu_seconds(training: psutil.Process) -> float:
    """Of those that are there, and of what they have started and outlived."""
    seconds = 0.0
    for process in _mirror_of(training):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(ratios, (NUM_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)
