"""Submitting what is left of a run and watching it; what a job's end means is read from disk, not from its state."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.executors import Executor, LocalExecutor, SlurmExecutor, Submitted, active_ids, make_executor
from wiseft_dist.launch.processes import termination_interrupts
from wiseft_dist.pipeline import Job, Step, is_finished, remaining
from wiseft_dist.progress import Bar, progress_bar
from wiseft_dist.run import Run, write_atomically
from wiseft_dist.tracking import read_events

SETTLE_SECONDS = 0.5
LOG_TAIL_LINES = 15


def run_pipeline(config: RunConfig, run: Run, *, detach: bool = False) -> None:
    """Submit what is not committed yet and, unless detached, follow it to its end. The caller holds the run's lock.

    Raises:
        UserError, RunError: if a job ends without its output, with its own words.
    """
    executor = make_executor(config, run)
    if isinstance(executor, SlurmExecutor):
        _run_chain(config, run, executor, detach=detach)
    else:
        for step in remaining(config, run):
            _run_step(config, run, executor, step)


def queued_jobs(run: Run) -> dict[str, str]:
    """Names and ids of the run's Slurm jobs that an earlier call submitted and that wait or run."""
    ledger = _ledger(run)
    submitted: dict[str, str] = json.loads(ledger.read_text()) if ledger.is_file() else {}
    alive = active_ids(list(submitted.values())) if submitted else set()
    return {name: job_id for name, job_id in submitted.items() if job_id in alive}


@contextmanager
def only_one(run: Run) -> Iterator[None]:
    """Hold the run's lock, and make its directory for it; the lock goes with the process, however that ends.

    Raises:
        UserError: if another process holds it.
    """
    run.jobs.mkdir(parents=True, exist_ok=True)
    with run.lock_file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = run.lock_file.stat().st_ino == os.fstat(handle.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        if not is_held:  # or the other was just taking its new run away again, and the file with it
            raise UserError(f"{run.path}: another `wiseft run` is at work on this run; nothing was started.")
        yield


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


def _run_chain(config: RunConfig, run: Run, executor: SlurmExecutor, *, detach: bool) -> None:
    """Follow what is in the queue already, then submit and follow what is left."""
    watch = _Watch(config, run, executor)
    queued = queued_jobs(run)
    jobs = {job.name: job for step in remaining(config, run) for job in step.jobs}
    watch.add([executor.attach(jobs[name], job_id) for name, job_id in queued.items() if name in jobs])
    if queued:
        _say(f"in the queue already: {', '.join(f'{name} ({job_id})' for name, job_id in queued.items())}")
        if detach:
            return
        _follow(watch)
    watch.add(_submit_chain(config, run, executor))
    if not detach:
        _follow(watch)


def _submit_chain(config: RunConfig, run: Run, executor: SlurmExecutor) -> list[Submitted]:
    """Submit every step that is left at once, each after the one before."""
    submitted: list[Submitted] = []
    last: list[Submitted] = []
    for step in remaining(config, run):
        last = executor.submit(step.jobs, after=last)
        submitted += last
        write_atomically(_ledger(run), json.dumps({item.job.name: item.job_id for item in submitted}, indent=1))
        _say(f"{step.stage}: submitted as {', '.join(item.job_id for item in last)}")
    return submitted


def _follow(watch: _Watch) -> None:
    with watch.stages(remaining(watch.config, watch.run)):
        while watch.open:
            watch.poll()


def _ledger(run: Run) -> Path:
    return run.jobs / "submitted.json"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class _Watch:
    """Jobs under way: reports progress, and raises when one ends without its output."""

    config: RunConfig
    run: Run
    executor: Executor
    open: list[Submitted] = field(default_factory=list)
    _started: dict[str, float] = field(default_factory=dict)
    _bar: Bar = field(default_factory=lambda: Bar(None, None))
    _num_earlier_events: int = 0

    def __post_init__(self) -> None:
        self._num_earlier_events = len(read_events(self.run))

    @contextmanager
    def stages(self, steps: Sequence[Step]) -> Iterator[None]:
        """Show a bar over the jobs of these steps while they are watched."""
        num_jobs = sum(len(step.jobs) for step in steps)
        with progress_bar(" → ".join(step.stage for step in steps), total=num_jobs, unit="jobs") as bar:
            self._bar = bar
            yield

    def add(self, submitted: Sequence[Submitted]) -> None:
        """Watch these too."""
        self.open += submitted
        self._started |= {item.job.name: time.monotonic() for item in submitted}

    def poll(self) -> None:
        """Look once at every job, then rest."""
        active = self.executor.active(self.open)
        for item in [item for item in self.open if item.job_id not in active]:
            self._settle(item)
            self.open.remove(item)
            self._bar.advance()
            seconds = time.monotonic() - self._started[item.job.name]
            _say(f"{item.job.name}: done ({seconds:.0f} s)")
        if self._bar.is_visible:
            self._bar.update(note=_latest(self.run))
        if self.open:
            time.sleep(self.executor.poll_seconds)

    def _settle(self, item: Submitted) -> None:
        """A job has ended: its output must be there, soon."""
        deadline = time.monotonic() + self.executor.visible_seconds
        while not is_finished(self.config, self.run, item.job):
            reason = _failure(read_events(self.run)[self._num_earlier_events :], item.job)
            if reason is not None or time.monotonic() > deadline:
                raise _ended_without_result(item, reason)
            time.sleep(SETTLE_SECONDS)


def _latest(run: Run) -> str:
    """The newest metrics of fine-tuning, for the bar."""
    metrics = [event for event in read_events(run)[-50:] if event["event"] == "metrics" and "loss" in event]
    return f"step {metrics[-1]['step']}, loss {metrics[-1]['loss']:.3f}" if metrics else ""


def _failure(events: Sequence[dict[str, Any]], job: Job) -> dict[str, Any] | None:
    """The first failure since the job last started: what other ranks say after it is about losing each other.

    The beginning of a part of the evaluation is no start of its job: other ranks go on while one has failed.
    """
    failure = None
    for event in events:
        if event["stage"] == job.stage and event.get("job") in (None, job.part):
            if event["event"] == "started" and "start" not in event:
                failure = None
            elif event["event"] == "failed":
                failure = failure or event
    return failure


def _ended_without_result(item: Submitted, failure: dict[str, Any] | None) -> UserError | RunError:
    """A failure that the job could put into words as such; any other with the end of its log."""
    log = item.log()
    for kind in (UserError, RunError):
        if failure is not None and failure["kind"] == kind.__name__:
            return kind(f"{item.job.name} failed: {failure['error']}\nIts log: {log}")
    reason = f" ({failure['kind']}: {failure['error']})" if failure else ""
    return RunError(f"{item.job.name} (job {item.job_id}) ended without its result{reason}.\n{_tail(log)}")


def _tail(log: Path) -> str:
    if not log.is_file():
        return f"It left no log at {log}: it never started."
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines)])
