"""How a run stands, read from its directory and from what its executor says; without torch, and writing nothing."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_dist.claims import claim_file, read_claim
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import TRAIN, load_manifest, sizes_to_evaluate
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import parts_of_job
from wiseft_dist.launch.advice import what_next
from wiseft_dist.launch.endings import failure_of, last_lines
from wiseft_dist.launch.ledger import Entry, log_file, read_ledger
from wiseft_dist.launch.local_jobs import is_alive
from wiseft_dist.launch.lock import Holder, holder
from wiseft_dist.launch.outcomes import INTERRUPTS, Outcome, explain, outcome_of, why_it_waits
from wiseft_dist.launch.pace import Pace, Training, evaluate_pace, finetune_pace, merge_pace
from wiseft_dist.launch.progress_line import RECENT_BYTES
from wiseft_dist.pipeline import STAGES, plan, remaining
from wiseft_dist.ranks import machine, started_at
from wiseft_dist.run import Run, newest_checkpoint, read_commit
from wiseft_dist.slurm import JobState, job_states
from wiseft_dist.tracking import read_events_from

LOG_LINES = 6
NOT_STARTED = "not_started"
"""The state of a job that was never submitted, or whose stage never began."""
UNKNOWN = "unknown"
"""The state of a job about which Slurm cannot be asked now."""
UNUSUAL = (
    *(Outcome.failed, Outcome.timed_out, Outcome.out_of_memory, Outcome.node_failed),
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


def run_status(run: Run, *, patience_seconds: float = 0.0) -> RunStatus:
    """Look at a run.

    Args:
        run: Its directory.
        patience_seconds: How long a controller of Slurm that does not answer is asked again.

    Raises:
        UserError: if the directory is not a run.
    """
    config = run.load_config()
    look = _Look.at(config, run, patience_seconds)
    jobs = [look.job_status(name) for name in look.names]
    stages = tuple(look.stage_status(stage, jobs) for stage in STAGES if any(_stage(job.name) == stage for job in jobs))
    pace, training = finetune_pace(config, look.events, num_training=look.num_training)
    stages = tuple(replace(each, pace=look.pace(each, pace)) for each in stages)
    error = look.last_error(jobs)
    status = RunStatus(
        run=str(run.path),
        state=_run_state(stages, look.controller, look.problems),
        executor=config.launch.executor,
        stages=stages,
        training=training if training.said is not None else None,
        checkpoint=_checkpoint(run, config),
        error=error,
        controller=look.controller,
        problems=look.problems,
        next="",
        time=time.time(),
    )
    return replace(status, next=what_next(status))


@dataclass(frozen=True)
class _Look:
    """What everything below is derived from, each thing read once."""

    config: RunConfig
    run: Run
    sizes: dict[str, int]
    names: tuple[str, ...]
    """All jobs of the run, in their order."""
    left: frozenset[str]
    """Those without their result."""
    num_training: int | None
    ledger: dict[str, Entry]
    states: Mapping[str, JobState]
    """What the executor says, by job id."""
    is_slurm_silent: bool
    events: Sequence[dict[str, Any]]
    """The newest ones."""
    controller: Holder | None
    problems: tuple[str, ...]

    @staticmethod
    def at(config: RunConfig, run: Run, patience_seconds: float) -> _Look:
        problems: list[str] = []
        sizes: dict[str, int] = {}
        num_training = None
        try:
            num_training = load_manifest(run, TRAIN).num_training
            sizes = sizes_to_evaluate(config, run)
        except (RunError, OSError, ValueError) as error:
            problems.append(str(error))
        names = tuple(job.name for step in plan(config, sizes) for job in step.jobs)
        left = frozenset(names)
        if num_training is not None:
            try:
                left = frozenset(job.name for step in remaining(config, run) for job in step.jobs)
            except (UserError, RunError, OSError, ValueError, LookupError) as error:
                problems.append(f"what is finished cannot be told: {error}")
        ledger = read_ledger(run)
        states, problem = _states(ledger, left, patience_seconds)
        return _Look(
            config=config,
            run=run,
            sizes=sizes,
            names=names,
            left=left,
            num_training=num_training,
            ledger=ledger,
            states=states,
            is_slurm_silent=problem is not None,
            events=read_events_from(run, -RECENT_BYTES),
            controller=holder(run),
            problems=(*problems, *([problem] if problem else [])),
        )

    def job_status(self, name: str) -> JobStatus:
        entry = self.ledger.get(name)
        if entry is None:
            return JobStatus(name, self._state_without_entry(name))
        state = self.states.get(entry.job_id)
        outcome = self._outcome(name, entry, state)
        log = log_file(entry, 0)
        return JobStatus(
            name=name,
            state=str(outcome),
            job_id=entry.job_id,
            executor=entry.executor,
            nodes=state.nodes if state else "",
            restarts=state.restarts if state else 0,
            submitted=entry.submitted,
            started=state.started if state else None,
            ended=state.ended if state else None,
            explanation=self._explanation(name, outcome, entry, state),
            log=str(log) if log.is_file() else None,
        )

    def stage_status(self, stage: str, jobs: Sequence[JobStatus]) -> StageStatus:
        own = tuple(job for job in jobs if _stage(job.name) == stage)
        counts = Counter(job.state for job in own)
        order = (Outcome.running, *UNUSUAL, UNKNOWN, Outcome.waiting, NOT_STARTED, Outcome.finished)
        return StageStatus(stage, str(next(state for state in order if counts[str(state)])), dict(counts), None, own)

    def pace(self, stage: StageStatus, finetune: Pace) -> Pace | None:
        """How far a stage is; nothing is left of what does not run."""
        if stage.state == Outcome.finished or stage.stage == "report":
            return None
        if stage.stage == "finetune":
            return self._if_running(finetune, stage) if finetune.done else None
        try:
            if stage.stage == "merge":
                return merge_pace(self.config, self.run)
            names = [job.name.partition("/")[2] for job in stage.jobs]
            parts = [part for name in names for part in parts_of_job(self.config, self.sizes, name)]
            return self._if_running(evaluate_pace(self.config, self.run, parts, self.events), stage)
        except (UserError, RunError, OSError, ValueError, LookupError):
            return None  # what is wrong stands among the problems

    def last_error(self, jobs: Sequence[JobStatus]) -> LastError | None:
        """Of the first job that came to a bad end; what follows it suffers from that."""
        for job in (job for job in jobs if job.state in UNUSUAL and job.state != Outcome.blocked):
            entry, failure = self.ledger.get(job.name), self._failure(job.name)
            lines = () if entry is None else tuple(last_lines(log_file(entry, 0), LOG_LINES) or ())
            text = job.explanation if failure is None or failure.get("kind") in INTERRUPTS else failure["error"]
            return LastError(job.name, str(text), failure.get("time") if failure else job.ended, job.log, lines)
        return None

    def _state_without_entry(self, name: str) -> str:
        """Of a job that nobody submitted: somebody may have started the stage by hand."""
        if name not in self.left:
            return str(Outcome.finished)
        if _is_at_work_here(self.run, name):
            return str(Outcome.running)
        return str(Outcome.failed) if self._failure(name) else NOT_STARTED

    def _outcome(self, name: str, entry: Entry, state: JobState | None) -> Outcome | str:
        if name not in self.left:
            return Outcome.finished
        if _is_at_work_here(self.run, name):
            return Outcome.running
        if entry.executor == "slurm" and self.is_slurm_silent:
            return UNKNOWN
        if state is not None and state.is_active:
            return outcome_of(state, has_result=False, failure=None)
        failure = self._failure(name)
        if failure is None and self._is_of_before(entry):
            return NOT_STARTED
        tail = "\n".join(last_lines(log_file(entry, 0), 40) or ())
        return outcome_of(state, has_result=False, failure=failure, log=tail)

    def _is_of_before(self, entry: Entry) -> bool:
        """Whether the job was there for something else than what the run lacks now: it ended well, or its time is over.

        Submitit leaves a result of every job that ends by itself; and what a stage waits for is submitted before it.
        """
        if (Path(entry.folder) / f"{entry.job_id}_0_result.pkl").is_file():
            return True
        earlier = STAGES[: STAGES.index(entry.stage)] if entry.stage in STAGES else ()
        return any(each.stage in earlier and each.submitted > entry.submitted for each in self.ledger.values())

    def _explanation(self, name: str, outcome: Outcome | str, entry: Entry, state: JobState | None) -> str:
        if not isinstance(outcome, Outcome) or outcome in (Outcome.finished, Outcome.running):
            return ""
        if outcome is Outcome.waiting and state is not None:
            return why_it_waits(state, _stage(name))
        return explain(outcome, name, state or JobState(entry.job_id, ""), self._failure(name))

    def _failure(self, name: str) -> dict[str, Any] | None:
        stage, _, part = name.partition("/")
        return failure_of(self.events, stage, part or None)

    @staticmethod
    def _if_running(pace: Pace, stage: StageStatus) -> Pace:
        return pace if stage.state == Outcome.running else replace(pace, seconds_left=None)


def _states(
    ledger: Mapping[str, Entry], left: frozenset[str], patience_seconds: float
) -> tuple[dict[str, JobState], str | None]:
    """What is known of the submitted jobs, by their ids; and, where Slurm does not answer, a sentence."""
    local = (entry for entry in ledger.values() if entry.executor == "local" and is_alive(entry))
    states = {entry.job_id: JobState(entry.job_id, "RUNNING", nodes=socket.gethostname()) for entry in local}
    ids = [entry.job_id for name, entry in ledger.items() if entry.executor == "slurm" and name in left]
    try:
        return states | job_states(ids, patience_seconds=patience_seconds, command_seconds=SLURM_SECONDS), None
    except RunError as error:
        return states, f"whether jobs wait or run is not known: {error}"


SLURM_SECONDS = 12.0
"""How long Slurm is waited for; its commands themselves give up after nine seconds."""


def _is_at_work_here(run: Run, name: str) -> bool:
    """Whether a process of this machine is at work on the job, whoever started it."""
    stage, _, part = name.partition("/")
    claim = read_claim(claim_file(run, stage, part or None))
    if claim is None or claim.is_over or claim.machine != machine():
        return False
    return started_at(claim.pid) == claim.pid_started


def _run_state(stages: Sequence[StageStatus], controller: Holder | None, problems: Sequence[str]) -> str:
    states = [stage.state for stage in stages]
    if states and all(state == Outcome.finished for state in states) and not problems:
        return "finished"
    if Outcome.running in states:
        return "running"
    if any(state in UNUSUAL for state in states):
        return "running" if controller is not None and controller.is_here else "failed"
    if UNKNOWN in states:
        return UNKNOWN
    if Outcome.waiting in states:
        return "waiting"
    return "running" if controller is not None else "stopped"


def _checkpoint(run: Run, config: RunConfig) -> Checkpoint | None:
    newest = newest_checkpoint(run)
    if newest is None and config.finetune.recipe == "lp_ft":
        newest = newest_checkpoint(replace(run, training="linear_head"))
    try:
        return None if newest is None else Checkpoint(int(read_commit(newest)["step"]), newest.stat().st_mtime)
    except (OSError, ValueError, LookupError):  # another process just made room for a newer one
        return None


def _stage(name: str) -> str:
    return name.partition("/")[0]
