"""Submitting what is left of a run and watching it; what a job's end means is read from disk, not from its state."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError
from wiseft_dist.launch.endings import ended_without_result, failure_of
from wiseft_dist.launch.executors import LocalExecutor, SlurmExecutor, Submitted, make_executor
from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.launch.others import refuse_unknown_jobs
from wiseft_dist.launch.outcomes import Outcome, outcome_of
from wiseft_dist.launch.patience import ASKING_AGAIN, Patience
from wiseft_dist.launch.processes import termination_interrupts
from wiseft_dist.launch.progress_line import progress_line
from wiseft_dist.launch.requeues import why_requeued
from wiseft_dist.pipeline import Step, is_finished, remaining
from wiseft_dist.printable import printable
from wiseft_dist.progress import Bar, progress_bar
from wiseft_dist.run import Run
from wiseft_dist.slurm import JobState, cancel_jobs, job_states
from wiseft_dist.tracking import append_event, read_events_from

SETTLE_SECONDS = 0.5
SHORT_SECONDS = 5.0
"""How long the words of a job that Slurm ended are waited for; those of one that ended by itself can come later."""
PROGRESS_SECONDS = 60.0
"""Between two lines of progress where there is no bar."""
NOTE_SECONDS = 5.0
"""Between two looks at a stage where there is one: on a large run each takes a while."""
MAX_NAMED = 12
"""Jobs that are named one by one."""


def run_pipeline(config: RunConfig, run: Run, *, detach: bool = False) -> None:
    """Submit what is not committed yet and, unless detached, follow it to its end. The caller holds the run's lock.

    Raises:
        UserError, RunError: if a job ends without its output, with its own words.
    """
    executor = make_executor(config, run)
    if isinstance(executor, SlurmExecutor):
        refuse_unknown_jobs(run)
        watch = _Watch(config, run, executor)
        with termination_interrupts(), _saying_that_jobs_go_on(watch):
            _run_chain(watch, executor, detach=detach)
    else:
        for step in remaining(config, run):
            _run_step(config, run, executor, step)


def queued_jobs(run: Run) -> dict[str, str]:
    """Names and ids of the run's Slurm jobs that an earlier call submitted and that wait or run."""
    return {name: state.job_id for name, state in _queued(run).items() if state.is_active}


def _queued(run: Run) -> dict[str, JobState]:
    """What Slurm knows of the jobs that earlier calls submitted, by their names; a batch script is none of them."""
    entries = {name: entry for name, entry in read_ledger(run).items() if entry.log is None}
    ids = {name: entry.job_id for name, entry in entries.items() if entry.executor == "slurm"}
    states = job_states(list(ids.values())) if ids else {}
    return {name: states[job_id] for name, job_id in ids.items() if job_id in states}


def _run_step(config: RunConfig, run: Run, executor: LocalExecutor, step: Step) -> None:
    """Run the jobs of a step, as many side by side as the machine allows."""
    watch = _Watch(config, run, executor)
    waiting = list(step.jobs)
    limit = min(executor.max_parallel(waiting[0].resources), waiting[0].resources.max_parallel, len(waiting))
    with termination_interrupts(), watch.stages([step]):
        try:
            while waiting or watch.open:
                while waiting and len(watch.open) < limit:
                    watch.add([executor.submit(waiting.pop(0), at_once=limit)])
                watch.poll()
        except BaseException:
            executor.cancel(watch.open)
            raise


def _run_chain(watch: _Watch, executor: SlurmExecutor, *, detach: bool) -> None:
    """Submit what is neither committed nor in the queue, and follow all of it."""
    states = _queued(watch.run)  # before looking at what is left: a job that ends in between is then not missed
    steps = _left(watch.config, watch.run, states)
    names = _worth_waiting_for(steps, states)
    queued = {
        job.name: executor.attach(job, names[job.name]) for step in steps for job in step.jobs if job.name in names
    }
    if queued:
        _say(f"in the queue already: {_named(list(queued.values()), with_names=True)}")
    watch.add(list(queued.values()))
    _submit_chain(steps, executor, queued, watch)
    if not detach:
        with watch.stages(remaining(watch.config, watch.run)):
            while watch.open:
                watch.poll()


def _left(config: RunConfig, run: Run, states: Mapping[str, JobState]) -> list[Step]:
    """What is left, after the results of jobs that have just ended well, and that others wait for, had time to show."""
    is_under_way = any(state.is_active for state in states.values())
    ended = {name: state.ended or time.time() for name, state in states.items() if state.state == "COMPLETED"}
    while True:
        steps = remaining(config, run)
        left = [ended[job.name] for step in steps for job in step.jobs if job.name in ended]
        if not is_under_way or not left or time.time() > max(left) + config.launch.visible_seconds:
            return steps
        time.sleep(SETTLE_SECONDS)


def _worth_waiting_for(steps: Sequence[Step], states: Mapping[str, JobState]) -> dict[str, str]:
    """Ids by name of the active jobs; those that cannot end well are taken out of the queue, to be submitted anew.

    A job waits in vain if one that it needs has ended without its result; Slurm may take a while to see that. One that
    runs although what it reads must be made again, because somebody took it away, can only fail.
    """
    active = {name: state for name, state in states.items() if state.is_active}
    doomed: list[str] = []
    is_broken = False
    for step in steps:
        names = [job.name for job in step.jobs]
        outcomes = {name: _outcome(active[name]) for name in names if name in active}
        doomed += [name for name, outcome in outcomes.items() if is_broken or outcome is Outcome.blocked]
        is_broken = is_broken or any(name not in active or name in doomed for name in names)
    for name in doomed:
        if _outcome(active[name]) is Outcome.running:
            _say(f"{name}: ended (job {active[name].job_id}), because what it reads must be made again")
    cancel_jobs([active[name].job_id for name in doomed])
    return {name: state.job_id for name, state in active.items() if name not in doomed}


def _submit_chain(
    steps: Sequence[Step], executor: SlurmExecutor, queued: Mapping[str, Submitted], watch: _Watch
) -> None:
    """Submit what is not in the queue of every step that is left, each step after the one before.

    Raises:
        RunError: if Slurm refuses a step; it says what stays in the queue.
    """
    before: list[Submitted] = []
    for step in steps:
        missing = [job for job in step.jobs if job.name not in queued]
        try:
            new = executor.submit(missing, after=before) if missing else []
        except RunError as error:
            raise RunError(f"{error}{_what_stays(watch)}") from error
        if new:
            _say(f"{step.stage}: submitted as {_named(new)}")
        watch.add(new)
        before = [*new, *(queued[job.name] for job in step.jobs if job.name in queued)]


def _what_stays(watch: _Watch) -> str:
    """After a refusal."""
    if not watch.open:
        return ""
    return (
        f"\nIn the queue stay: {_named(watch.open, with_names=True)}. Mend this and `wiseft run` again: it adds what "
        f"is missing. `wiseft cancel {watch.run.path}` takes them out."
    )


def _named(submitted: Sequence[Submitted], *, with_names: bool = False) -> str:
    """Their ids; of many the first and the last."""
    ids = [f"{item.job.name} ({item.job_id})" if with_names else item.job_id for item in submitted]
    return ", ".join(ids) if len(ids) <= MAX_NAMED else f"{ids[0]} to {ids[-1]} ({len(ids)} jobs)"


@contextmanager
def _saying_that_jobs_go_on(watch: _Watch) -> Iterator[None]:
    """Whoever ends this process does not end what Slurm has taken."""
    run, began = watch.run, time.time()
    try:
        yield
    except KeyboardInterrupt:
        if watch.open or any(entry.submitted >= began for entry in read_ledger(run).values()):
            with suppress(OSError):  # the terminal may be gone
                _say(
                    f"The jobs go on. `wiseft run {run.config_file}` follows them again, `wiseft status {run.path}` "
                    f"shows them, `wiseft cancel {run.path}` ends them."
                )
        raise


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _outcome(state: JobState | None) -> Outcome:
    return outcome_of(state, has_result=False, failure=None)


def _is_at_work(state: JobState | None) -> bool:
    """Whether it runs, and is not being ended on its nodes, maybe to come back."""
    return _outcome(state) is Outcome.running and state is not None and state.state != "COMPLETING"


@dataclass
class _Watch:
    """Jobs under way: reports progress, and raises when one ends without its output."""

    config: RunConfig
    run: Run
    executor: LocalExecutor | SlurmExecutor
    open: list[Submitted] = field(default_factory=list)
    _started: dict[str, float] = field(default_factory=dict)
    _seen: dict[str, JobState] = field(default_factory=dict)
    """What was last known of each job."""
    _bar: Bar = field(default_factory=Bar)
    _first_byte: int = 0
    """Of the events that are not from before."""
    _told: float = field(default_factory=time.monotonic)
    """When progress was last told."""
    _controller: Patience = field(default_factory=lambda: Patience(_say, meanwhile=ASKING_AGAIN))

    def __post_init__(self) -> None:
        events = self.run.events_file
        self._first_byte = events.stat().st_size if events.is_file() else 0

    @contextmanager
    def stages(self, steps: Sequence[Step]) -> Iterator[None]:
        """Show a bar over the jobs of these steps while they are watched."""
        num_jobs = sum(len(step.jobs) for step in steps)
        title = " → ".join(step.stage for step in steps)
        with progress_bar(title, total=num_jobs, unit="jobs", tells_lines=False) as bar:
            self._bar = bar
            yield

    def add(self, submitted: Sequence[Submitted]) -> None:
        """Watch these too."""
        self.open += submitted
        self._started |= {item.job.name: time.monotonic() for item in submitted}

    def poll(self) -> None:
        """Look once at every job, then rest."""
        states = self._states()
        self._tell_requeues(states or {})
        for item in list(self.open if states is not None else ()):
            state = states[item.job_id] if states and item.job_id in states else None
            self._tell_changes(item, state)
            if state is None or not state.is_active or _outcome(state) is Outcome.blocked:
                self._settle(item, state)
                self.open.remove(item)
                self._bar.advance()
                self._bar.update(note="")
                seconds = time.monotonic() - self._started[item.job.name]
                _say(f"{item.job.name}: done ({seconds:.0f} s)")
        self._tell_progress()
        if self.open:
            time.sleep(self.executor.poll_seconds)

    def _states(self) -> dict[str, JobState] | None:
        """What is known of the open jobs, by their ids; None while Slurm's controller is away."""
        if isinstance(self.executor, LocalExecutor):
            return {job_id: JobState(job_id, "RUNNING") for job_id in self.executor.active(self.open)}
        return self._controller.ask(lambda: job_states([item.job_id for item in self.open]))

    def _tell_requeues(self, states: Mapping[str, JobState]) -> None:
        """Say which Slurm jobs are in the queue again, and why."""
        seen = ((item, self._seen.get(item.job.name)) for item in self.open)
        came_back = [
            (item, before)
            for item, before in seen
            if before and item.job_id in states and states[item.job_id].restarts > before.restarts
        ]
        for (item, _), why in zip(came_back, why_requeued([before for _, before in came_back]), strict=True):
            _say(f"{item.job.name}: {why}, in the queue again")

    def _tell_changes(self, item: Submitted, state: JobState | None) -> None:
        """Say that a Slurm job has started."""
        if isinstance(self.executor, LocalExecutor) or state is None:
            return
        before = self._seen.get(item.job.name)
        self._seen[item.job.name] = state
        is_running, was_running = map(_is_at_work, (state, before))
        if is_running and state.nodes and (not was_running or (before and state.restarts > before.restarts)):
            self._started[item.job.name] = time.monotonic()
            _say(f"{item.job.name}: runs on {state.nodes} (job {state.job_id})")

    def _tell_progress(self) -> None:
        """Under the bar, or a line now and then."""
        seconds = NOTE_SECONDS if self._bar.is_visible else PROGRESS_SECONDS
        if not self.open or time.monotonic() - self._told <= seconds:
            return
        self._told = time.monotonic()
        line = progress_line(self.config, self.run, self._stage())
        if self._bar.is_visible:
            self._bar.update(note=line)
        elif line:
            _say(line)

    def _stage(self) -> str:
        return self.open[0].job.stage if self.open else ""

    def _settle(self, item: Submitted, state: JobState | None) -> None:
        """A job has ended: its output must be there, soon."""
        deadline = time.monotonic() + self._patience(state)
        while not is_finished(self.config, self.run, item.job):
            failure = failure_of(read_events_from(self.run, self._first_byte), item.job.stage, item.job.part)
            if failure is not None or time.monotonic() > deadline:
                entry = item.entry("local" if isinstance(self.executor, LocalExecutor) else "slurm")
                if state is not None and entry.executor == "slurm":
                    self._note_end(item, _outcome(state))
                raise ended_without_result(entry, state, failure, more=self._still_there(item))
            time.sleep(SETTLE_SECONDS)

    def _note_end(self, item: Submitted, outcome: Outcome) -> None:
        """Remember what Slurm will soon forget; `wiseft status` reads it."""
        with suppress(OSError):
            append_event(
                self.run.events_file,
                stage=item.job.stage,
                event="ended",
                job=item.job.part,
                job_id=item.job_id,
                outcome=str(outcome),
            )

    def _patience(self, state: JobState | None) -> float:
        """How long the file system may take to show what an ended job has written, in seconds."""
        if isinstance(self.executor, LocalExecutor) or _outcome(state) is Outcome.blocked:
            return 0.0
        visible = self.config.launch.visible_seconds
        return visible if state is None or state.state == "COMPLETED" else min(visible, SHORT_SECONDS)

    def _still_there(self, failed: Submitted) -> str:
        """Other jobs of its array go on without it."""
        if isinstance(self.executor, LocalExecutor):
            return ""
        beside = [item for item in self.open if item.job.stage == failed.job.stage and item is not failed]
        active = [item for item in beside if (state := self._seen.get(item.job.name)) and state.is_active]
        if not active:
            return ""
        return f"\nOther jobs of this stage go on: {_named(active)}. `wiseft cancel {self.run.path}` ends them."
