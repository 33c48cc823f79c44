"""What became of each run of a sweep: finished, under way, or ended without its result, and then why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wiseft_dist.launch.endings import failure_of, last_lines
from wiseft_dist.launch.ledger import Entry, log_file, read_ledger
from wiseft_dist.launch.lock import holder
from wiseft_dist.launch.outcomes import UNDER_WAY, Outcome, explain, outcome_of
from wiseft_dist.launch.status_records import NOT_STARTED
from wiseft_dist.launch.sweep.directory import Sweep
from wiseft_dist.pipeline import Job, remaining
from wiseft_dist.printable import printable
from wiseft_dist.run import Run
from wiseft_dist.slurm import JobState, job_states
from wiseft_dist.tracking import read_events

NUM_LOG_LINES = 5
"""Of a log: lack of memory shows in them."""


@dataclass(frozen=True)
class RunState:
    """How far a run is."""

    name: str
    state: str
    """An :class:`Outcome`, or ``not_started``."""
    stage: str = ""
    """Where it is, or where it ended; nothing of a finished one."""
    reason: str = ""
    """What became of its job and what to do; nothing of a finished one or one that goes its way."""

    @property
    def is_finished(self) -> bool:
        """Whether all its results are there."""
        return self.state == Outcome.finished

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self.state not in UNDER_WAY


def run_states(sweep: Sweep, runs: Sequence[Run]) -> list[RunState]:
    """The state of some runs of a sweep; Slurm is asked once for all of them.

    Raises:
        RunError: if Slurm does not answer.
    """
    ledgers = {run: read_ledger(run) for run in runs}
    ids = [entry.job_id for ledger in ledgers.values() for entry in ledger.values() if entry.executor == "slurm"]
    states = job_states(ids) if ids else {}
    return [_under_way(run, ledgers[run], states) or _state(run, _left(run), ledgers[run], states) for run in runs]


def _under_way(run: Run, ledger: Mapping[str, Entry], states: Mapping[str, JobState]) -> RunState | None:
    """That of a run whose last job still can start: nothing before it has failed, and its folder need not be read."""
    outcomes = {
        entry.name: outcome_of(states[entry.job_id], has_result=False, failure=None)
        for entry in ledger.values()
        if entry.job_id in states
    }
    active = [name for name, outcome in outcomes.items() if outcome in UNDER_WAY]
    if not active or active[-1] != list(ledger)[-1]:
        return None
    name = next((name for name in active if outcomes[name] is Outcome.running), active[0])
    return RunState(run.path.name, outcomes[name], ledger[name].stage)


def _left(run: Run) -> list[Job] | None:
    """The jobs that a run lacks, in order; None of one that is not there yet."""
    if not run.config_file.is_file() or not run.manifests.is_dir():
        return None
    return [job for step in remaining(run.load_config(), run) for job in step.jobs]


def _state(run: Run, left: list[Job] | None, ledger: Mapping[str, Entry], states: Mapping[str, JobState]) -> RunState:
    """That of the first missing job that has ended badly; else of the first one that runs, or waits."""
    name = run.path.name
    if left is not None and not left:
        return RunState(name, Outcome.finished)
    entries = list(ledger.values()) if left is None else [ledger[job.name] for job in left if job.name in ledger]
    found = [_of_job(run, entry, states.get(entry.job_id)) for entry in entries]
    if not found:
        is_held = holder(run) is not None
        return RunState(name, Outcome.running if is_held else NOT_STARTED, left[0].stage if left else "")
    ended = [each for each in found if each.has_ended and each.state != Outcome.blocked]
    running = [each for each in found if each.state == Outcome.running]
    return (ended or running or found)[0]


def _of_job(run: Run, entry: Entry, state: JobState | None) -> RunState:
    """What became of a job that left no result."""
    if entry.executor == "local" and holder(run) is not None:
        return RunState(run.path.name, Outcome.running, entry.stage)
    failure = failure_of(read_events(run), entry.stage, entry.part)
    log = "\n".join(last_lines(log_file(entry, 0), NUM_LOG_LINES) or ())
    outcome = outcome_of(state, has_result=False, failure=failure, log=log)
    reason = "" if outcome in UNDER_WAY else printable(explain(outcome, entry.name, state, failure))
    return RunState(run.path.name, outcome, entry.stage, reason)
