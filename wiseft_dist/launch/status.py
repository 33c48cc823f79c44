"""How a run stands, read from its directory and from what its executor says; without torch, and writing nothing."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wiseft_dist.claims import claim_file, read_claim
from wiseft_dist.commits import read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import TRAIN, load_manifest, sizes_to_evaluate
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import parts_of_job
from wiseft_dist.launch.advice import what_next
from wiseft_dist.launch.endings import failure_of, last_lines
from wiseft_dist.launch.known_jobs import known_jobs
from wiseft_dist.launch.ledger import Entry, log_file
from wiseft_dist.launch.local_jobs import is_alive
from wiseft_dist.launch.lock import Holder, holder
from wiseft_dist.launch.outcomes import (
    INTERRUPTS,
    REASONS,
    WENT_WELL,
    WENT_WRONG,
    Outcome,
    explain,
    outcome_of,
    why_it_waits,
)
from wiseft_dist.launch.pace import Pace, evaluate_pace, finetune_pace, merge_pace
from wiseft_dist.launch.progress_line import RECENT_BYTES
from wiseft_dist.launch.status_records import (
    NOT_STARTED,
    UNKNOWN,
    UNUSUAL,
    Checkpoint,
    JobStatus,
    LastError,
    RunStatus,
    StageStatus,
)
from wiseft_dist.pipeline import STAGES, plan, remaining
from wiseft_dist.ranks import machine, started_at
from wiseft_dist.run import Run, newest_checkpoint
from wiseft_dist.slurm import NOT_STARTED as SLURM_NOT_STARTED
from wiseft_dist.slurm import JobState, job_states
from wiseft_dist.tracking import read_events_from

LOG_LINES = 6
TAIL_LINES = 200
"""Of a log, for how its job ended: a traceback of several ranks is long."""


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
    jobs = _with_blocked([look.job_status(name) for name in look.names], look)
    stages = tuple(look.stage_status(stage, jobs) for stage in STAGES if any(_stage(job.name) == stage for job in jobs))
    pace, training = finetune_pace(config, look.events, num_training=look.num_training)
    stages = tuple(replace(each, pace=look.pace(each, pace)) for each in stages)
    error = look.last_error(jobs)
    status = RunStatus(
        run=str(run.path),
        state=_run_state(stages, look.controller, config.launch.executor, look.problems),
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
    """What the executor says, by job id; asked before it was looked what is left."""
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
        ledger = known_jobs(run)
        left, wrong = (frozenset(names), None) if num_training is None else _left(config, run, names)
        states, problem = _states(ledger, left, patience_seconds)
        if (
            states and wrong is None
        ):  # a job may have ended before Slurm was asked, and after it was looked what is left
            left, wrong = _left(config, run, names)
        problems += [each for each in (wrong, problem) if each is not None]
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
            problems=tuple(problems),
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
        if entry.log is not None and self._comes_later(name):
            return Outcome.waiting if state is not None and state.is_active else NOT_STARTED
        if state is not None and state.is_active:
            return outcome_of(state, has_result=False, failure=None)
        failure = self._failure(name)
        if failure is None and self._is_of_before(entry, state):
            return NOT_STARTED
        if state is None and failure is None and (seen := self._seen_end(entry)) is not None:
            return seen
        tail = "\n".join(last_lines(log_file(entry, 0), TAIL_LINES) or ())
        return outcome_of(state, has_result=False, failure=failure, log=tail)

    def _comes_later(self, name: str) -> bool:
        """Whether a job that does several stages, such as `slurm/run.sbatch`, is still at one before this."""
        return _stage(name) != _stage(next(each for each in self.names if each in self.left))

    def _is_of_before(self, entry: Entry, state: JobState | None) -> bool:
        """Whether the job was there for something else than what the run lacks now: it ended well, or its time is over.

        Slurm's word for its end counts most, then submitit's; what a stage waits for is submitted before it.
        """
        if state is not None and state.state != "COMPLETED":
            return False
        log = "\n".join(last_lines(log_file(entry, 0), TAIL_LINES) or ())
        if log.rfind(WENT_WELL) > log.rfind(WENT_WRONG):
            return True
        earlier = STAGES[: STAGES.index(entry.stage)] if entry.stage in STAGES else ()
        return any(each.stage in earlier and each.submitted > entry.submitted for each in self.ledger.values())

    def _seen_end(self, entry: Entry) -> Outcome | None:
        """What whoever followed a job that Slurm has forgotten has seen and written down."""
        for event in reversed(self.events):
            if event.get("event") == "ended" and event.get("job_id") == entry.job_id:
                outcome = str(event.get("outcome"))
                return Outcome(outcome) if outcome in list(Outcome) else None
        return None

    def _explanation(self, name: str, outcome: Outcome | str, entry: Entry, state: JobState | None) -> str:
        if not isinstance(outcome, Outcome) or outcome in (Outcome.finished, Outcome.running):
            return ""
        if outcome is Outcome.waiting and state is not None:
            is_running = state.state not in SLURM_NOT_STARTED
            return "its job is at an earlier stage" if is_running else why_it_waits(state, _stage(name))
        return explain(outcome, name, state or JobState(entry.job_id, ""), self._failure(name))

    def _failure(self, name: str) -> dict[str, Any] | None:
        stage, _, part = name.partition("/")
        return failure_of(self.events, stage, part or None)

    @staticmethod
    def _if_running(pace: Pace, stage: StageStatus) -> Pace:
        return pace if stage.state == Outcome.running else replace(pace, seconds_left=None)


def _with_blocked(jobs: Sequence[JobStatus], look: _Look) -> list[JobStatus]:
    """Jobs that wait for one that came to a bad end never start; Slurm itself may be some time in seeing that."""
    shown: list[JobStatus] = []
    for job in jobs:
        waits = job.state == Outcome.waiting and job.explanation == REASONS["Dependency"]
        before = STAGES[: STAGES.index(_stage(job.name))]
        if waits and any(each.state in UNUSUAL and _stage(each.name) in before for each in shown):
            state = look.states.get(str(job.job_id))
            job = replace(job, state=str(Outcome.blocked), explanation=explain(Outcome.blocked, job.name, state))
        shown.append(job)
    return shown


def _left(config: RunConfig, run: Run, names: Sequence[str]) -> tuple[frozenset[str], str | None]:
    """The jobs without their result; all and a sentence where that cannot be told."""
    try:
        return frozenset(job.name for step in remaining(config, run) for job in step.jobs), None
    except (UserError, RunError, OSError, ValueError, LookupError) as error:
        return frozenset(names), f"what is finished cannot be told: {error}"


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


def _run_state(stages: Sequence[StageStatus], controller: Holder | None, executor: str, problems: Sequence[str]) -> str:
    """What is in the queue says more than who holds the lock: that process may have been killed on another machine."""
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
    return "running" if controller is not None and (controller.is_here or executor == "local") else "stopped"


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
