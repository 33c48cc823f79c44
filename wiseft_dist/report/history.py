"""What a run's events tell of how it went, read once from end to end: trainings, attempts, parts, what went wrong.

A long run has millions of events; nothing of them is kept but numbers.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wiseft_dist.run import Run
from wiseft_dist.tracking.events import each_event

TRAININGS = ("linear_head", "finetune")
"""What stands as ``stage`` in the events of a training; LP-FT has the first before the second."""
MAX_SENTENCES = 200
"""Of different warnings, so many are kept; the last ones."""
LATEST = 1e11
"""Seconds since 1970; a time beyond it, in the year 5138, is none."""
MOST = 2**62
"""A count beyond it is none: it would not even be a number to divide."""
NOT_SERIES = ("time", "step", "alpha")


@dataclass
class Series:
    """A metric over steps; each step once, as it was told first."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: float) -> None:
        """Take a value, unless its step was told already: a resumed training logs again what it does again."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)


@dataclass
class Sentences:
    """Different sentences: how many there were, the first one, and the last ones."""

    first: str = ""
    last: dict[str, None] = field(default_factory=dict)
    """In the order in which they were told first, at most :data:`MAX_SENTENCES`."""
    _hashes: set[int] = field(default_factory=set)
    """Of all of them: far smaller than they are."""

    def add(self, text: str) -> None:
        """Take one, unless it is empty or was told before."""
        if not text or hash(text) in self._hashes:
            return
        self._hashes.add(hash(text))
        self.first = self.first or text
        self.last[text] = None
        if len(self.last) > MAX_SENTENCES:
            del self.last[next(iter(self.last))]

    def __len__(self) -> int:
        return len(self._hashes)


@dataclass
class Training:
    """One training of a run."""

    stage: str
    series: dict[str, Series] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    """The steps at which later sessions went on."""
    num_sessions: int = 0
    total_steps: int | None = None
    num_bad_steps: int = 0
    skipped: Sentences = field(default_factory=Sentences)
    """One for each training sample that could not be used."""
    bottleneck: str = ""
    """What held the last session up."""


@dataclass
class Attempt:
    """One start of a stage, or of one of its jobs."""

    stage: str
    job: str
    began: float
    """Seconds since 1970."""
    ended: float
    """When the stage was heard of last before its next start; never before ``began``, whatever hosts' clocks say."""
    event: Mapping[str, Any]
    """What it told of itself: host, world_size, restart, code, libraries, ..."""

    @property
    def world_size(self) -> int:
        """Its processes."""
        return _count(self.event.get("world_size"))

    @property
    def num_requeues(self) -> int:
        """How often Slurm had started its job before."""
        return _count(self.event.get("restart"), least=0)

    @property
    def is_requeued(self) -> bool:
        """Whether Slurm had started its job before."""
        return self.num_requeues > 0


@dataclass(frozen=True)
class ScoredPart:
    """A part of the evaluation, from its start to its commit."""

    dataset: str
    num_samples: int
    num_members: int
    began: float
    ended: float


@dataclass
class History:
    """All that a page tells of how its run went."""

    trainings: dict[str, Training] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    parts: list[ScoredPart] = field(default_factory=list)
    codes: list[Mapping[str, Any]] = field(default_factory=list)
    """Events that name the code, each code once in the order of its first use."""
    merged_bytes: int = 0
    warnings: Sentences = field(default_factory=Sentences)
    failures: dict[str, int] = field(default_factory=dict)
    """By stage, how often it failed."""
    first: float = math.nan
    """Time of the first event, seconds since 1970."""
    last: float = math.nan


def history(run: Run) -> History:
    """What the events of a run say; of a run without events, nothing."""
    return history_of(each_event(run))


def history_of(events: Iterable[Mapping[str, Any]]) -> History:
    """The same of given events."""
    reader = _Reader()
    for event in events:
        reader.add(event)
    return reader.found


@dataclass
class _Reader:
    found: History = field(default_factory=History)
    open_attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    """By stage, those that may still be running."""
    open_parts: dict[tuple[Any, ...], Mapping[str, Any]] = field(default_factory=dict)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event; one that is not what it should be is passed over."""
        stage, name, when = event.get("stage"), event.get("event"), _number(event.get("time"))
        if not isinstance(stage, str) or not isinstance(name, str) or when is None or not 0 <= when <= LATEST:
            return
        self._clock(stage, name, when)
        if name == "metrics":
            if stage in TRAININGS:
                self._metrics(stage, event)
        elif (read := getattr(self, f"_on_{name}", None)) is not None:
            read(stage, event)

    def _clock(self, stage: str, name: str, when: float) -> None:
        found = self.found
        found.first = when if math.isnan(found.first) else min(found.first, when)
        found.last = when if math.isnan(found.last) else max(found.last, when)
        if name != "attempt":
            for attempt in self.open_attempts.get("finetune" if stage in TRAININGS else stage, ()):
                attempt.ended = max(attempt.ended, when)

    def _training(self, stage: str) -> Training:
        return self.found.trainings.setdefault(stage, Training(stage))

    def _metrics(self, stage: str, event: Mapping[str, Any]) -> None:
        step = _number(event.get("step"))
        if step is None or not math.isfinite(step):
            return
        series = self._training(stage).series
        for name, given in event.items():
            if name not in NOT_SERIES and (value := _number(given)) is not None:
                if name not in series:
                    series[name] = Series()
                series[name].add(step, value)

    def _on_attempt(self, stage: str, event: Mapping[str, Any]) -> None:
        job, when = str(event.get("job") or ""), float(event["time"])
        attempt = Attempt(stage, job, when, when, event)
        others = [each for each in self.open_attempts.get(stage, []) if each.job != job]
        self.open_attempts[stage] = [*others, attempt]
        self.found.attempts.append(attempt)
        self._on_code(stage, event)

    def _on_code(self, stage: str, event: Mapping[str, Any]) -> None:
        if event.get("code") and event["code"] not in [each["code"] for each in self.found.codes]:
            self.found.codes.append(event)

    def _on_started(self, stage: str, event: Mapping[str, Any]) -> None:
        if stage in TRAININGS:
            training, step = self._training(stage), event.get("step")
            training.num_sessions += 1
            training.total_steps = _count(event.get("total_steps"), least=0) or training.total_steps
            if training.num_sessions > 1 and isinstance(step, int) and abs(step) <= MOST:
                training.resumed.append(step)
        elif stage == "evaluate":
            self.open_parts[_part(event)] = event

    def _on_finished(self, stage: str, event: Mapping[str, Any]) -> None:
        if stage == "merge":
            self.found.merged_bytes += _count(event.get("bytes"), least=0)
        started = self.open_parts.pop(_part(event), None) if stage == "evaluate" else None
        if started is None:
            return
        try:
            num_samples = int(event["stop"]) - int(event["start"])
            num_members = len(started.get("alphas", ())) + len(started.get("output_alphas", ()))
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        began, ended = float(started["time"]), float(event["time"])
        dataset = str(event.get("dataset"))
        self.found.parts.append(ScoredPart(dataset, num_samples, num_members, began, max(began, ended)))

    def _on_bad_step(self, stage: str, event: Mapping[str, Any]) -> None:
        self._training(stage).num_bad_steps += 1

    def _on_bottleneck(self, stage: str, event: Mapping[str, Any]) -> None:
        self._training(stage).bottleneck = str(event.get("summary", ""))

    def _on_epoch(self, stage: str, event: Mapping[str, Any]) -> None:
        skipped = event.get("skipped")
        for text in skipped if isinstance(skipped, list) else ():
            self._training(stage).skipped.add(str(text))

    def _on_warning(self, stage: str, event: Mapping[str, Any]) -> None:
        self.found.warnings.add(str(event.get("warning", "")))

    def _on_preflight(self, stage: str, event: Mapping[str, Any]) -> None:
        warnings = event.get("warnings")
        for text in warnings if isinstance(warnings, list) else ():
            self.found.warnings.add(str(text))

    def _on_failed(self, stage: str, event: Mapping[str, Any]) -> None:
        self.found.failures[stage] = self.found.failures.get(stage, 0) + 1


def _part(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(str(event.get(name)) for name in ("dataset", "start", "stop"))


def _count(value: Any, *, least: int = 1) -> int:
    return max(least, value) if isinstance(value, int) and value <= MOST else least


def _number(value: Any) -> float | None:
    """None of what is no number, and of one that no computer counts with."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None
