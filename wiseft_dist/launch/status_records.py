"""What `wiseft status` knows of a run: the records that its screen and its JSON are made of."""

from __future__ import annotations

from dataclasses import dataclass

from wiseft_dist.launch.lock import Holder
from wiseft_dist.launch.outcomes import Outcome
from wiseft_dist.launch.pace import Pace, Training

NOT_STARTED = "not_started"
"""The state of a job that was never submitted, or whose stage never began."""
UNKNOWN = "unknown"
"""The state of a job about which Slurm cannot be asked now."""
UNUSUAL = (
    *(Outcome.failed, Outcome.timed_out, Outcome.out_of_memory, Outcome.out_of_gpu_memory, Outcome.node_failed),
    *(Outcome.preempted, Outcome.cancelled, Outcome.blocked, Outcome.forgotten),
)
"""Ends that somebody should hear of."""


@dataclass(frozen=True)
class JobStatus:
    """One job of a stage. Times are in seconds since 1970."""

    name: str
    """``evaluate/1-of-3``."""
    state: str
    """An :class:`Outcome`, ``not_started`` or ``unknown``."""
    job_id: str | None = None
    executor: str | None = None
    nodes: str = ""
    restarts: int = 0
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    explanation: str = ""
    """A sentence about a job that came to a bad end with what to do; why one waits."""
    log: str | None = None
    """What its first process printed."""


@dataclass(frozen=True)
class StageStatus:
    """A stage and its jobs."""

    stage: str
    state: str
    """As of a job; of several jobs: ``running`` if one is, else what most needs attention."""
    counts: dict[str, int]
    """Jobs by state."""
    pace: Pace | None
    """How far it is: ``done`` of ``total`` ``unit``, and ``seconds_left``."""
    jobs: tuple[JobStatus, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The newest committed one."""

    step: int
    saved: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class LastError:
    """What a failed job last said."""

    job: str
    text: str
    time: float | None
    log: str | None
    log_tail: tuple[str, ...]


@dataclass(frozen=True)
class RunStatus:
    """A run: this, as ``dataclasses.asdict`` writes it, is what `wiseft status --json` prints."""

    run: str
    """Its directory."""
    state: str
    """``finished``, ``running``, ``waiting``, ``failed`` (somebody must look), ``stopped`` (nothing is at work), or
    ``unknown`` (Slurm cannot be asked)."""
    executor: str
    """``local``, ``slurm``."""
    stages: tuple[StageStatus, ...]
    training: Training | None
    """What fine-tuning last said about itself."""
    checkpoint: Checkpoint | None
    error: LastError | None
    controller: Holder | None
    """The `wiseft run` that is at work on it: host and process id."""
    problems: tuple[str, ...]
    """What could not be found out: Slurm does not answer, a manifest is missing."""
    next: str
    """What to do now, in a sentence."""
    time: float
    """When all this was looked up: seconds since 1970."""
