"""A run's status as text: one screen of at most 100 columns."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence

from wiseft_dist.launch.outcomes import Outcome
from wiseft_dist.launch.pace import WORTH_SAYING_PERCENT, Training
from wiseft_dist.launch.progress_line import amount, time_left
from wiseft_dist.launch.status_records import NOT_STARTED, JobStatus, LastError, RunStatus, StageStatus
from wiseft_dist.printable import printable
from wiseft_dist.progress import duration

WIDTH = 100
MARGIN = 12
"""Columns of the names at the left."""
MAX_LISTED = 6
"""Jobs of an array that are listed one by one."""
MAX_ERROR_LINES = 6
WORDS = {NOT_STARTED: "not started", "finished": "done"}
"""States whose own name is not what a person says; of the others, underscores become spaces."""


def status_text(status: RunStatus) -> str:
    """All of it; whatever comes from files or from Slurm is escaped."""
    lines = [*_head(status)]
    for stage in status.stages:
        lines += _stage(stage, status)
    if status.training is not None:
        lines += _field("training", _training(status.training))
    if status.checkpoint is not None:
        age = duration(max(0.0, status.time - status.checkpoint.saved))
        lines += _field("checkpoint", f"step {status.checkpoint.step:,}, saved {age} ago")
    if status.error is not None:
        lines += _error(status.error, status.time)
    for problem in status.problems:
        lines += _field("problem", problem)
    return "\n".join([*lines, *_field("next", status.next)])


def _head(status: RunStatus) -> Iterator[str]:
    at_work = status.controller
    who = "" if at_work is None else f"; `wiseft run` is process {at_work.pid} on {at_work.host}"
    clock = time.strftime("%H:%M:%S", time.localtime(status.time))
    yield from _field("run", f"{status.run}")
    yield from _field("state", f"{_word(status.state)} at {clock} ({status.executor}{who})")


def _stage(stage: StageStatus, status: RunStatus) -> Iterator[str]:
    facts = [_counts(stage) if len(stage.jobs) > 1 else _word(stage.state) + _reason(stage.jobs)]
    if stage.pace is not None and (stage.pace.done or stage.state == Outcome.running):
        facts.append(amount(stage.pace) + _epochs(stage, status) + time_left(stage.pace.seconds_left))
    if len(stage.jobs) == 1:
        facts += _where(stage.jobs[0], status.time)
    yield from _field(stage.stage, "; ".join(filter(None, facts)))
    if len(stage.counts) > 1:
        yield from _listed(stage.jobs, status.time)


def _counts(stage: StageStatus) -> str:
    """``12 of 40 done, 8 running, 1 failed``."""
    done = stage.counts.get(Outcome.finished, 0)
    others = [f"{count:,} {_word(state)}" for state, count in stage.counts.items() if state != Outcome.finished]
    return ", ".join([f"{done:,} of {len(stage.jobs):,} done", *others]) + _reason(stage.jobs)


def _reason(jobs: Sequence[JobStatus]) -> str:
    """Why they wait, if all that wait do so for the same reason."""
    reasons = {job.explanation for job in jobs if job.state == Outcome.waiting and job.explanation}
    return f" ({reasons.pop()})" if len(reasons) == 1 else ""


def _epochs(stage: StageStatus, status: RunStatus) -> str:
    training = status.training
    if stage.stage != "finetune" or training is None or training.epoch is None or training.epochs is None:
        return ""
    head = "" if training.phase == "finetune" else " of the head"
    return f"{head} (epoch {training.epoch:.1f} of {training.epochs:g})"


def _where(job: JobStatus, now: float) -> list[str]:
    """The job's id, its nodes, and how often it came back."""
    if job.job_id is None or job.state == Outcome.finished:
        return []
    kind = "process" if job.executor == "local" else "job"
    place = f"{kind} {job.job_id}" + (f" on {job.nodes}" if job.nodes else "")
    since = f"for {duration(max(0.0, now - job.started))}" if job.started and job.state == Outcome.running else ""
    times = {0: "", 1: "requeued once"}.get(job.restarts, f"requeued {job.restarts} times")
    return [place, since, times]


def _listed(jobs: Sequence[JobStatus], now: float) -> Iterator[str]:
    """Those that run or came to a bad end; bad ends first."""
    quiet = (Outcome.finished, Outcome.waiting, Outcome.blocked, NOT_STARTED)
    unusual = [job for job in jobs if job.state not in (*quiet, Outcome.running)]
    came_back = [job for job in jobs if job.state == Outcome.running and job.restarts]
    shown = [*unusual, *came_back]
    for job in shown[:MAX_LISTED]:
        facts = "; ".join(filter(None, [_word(job.state), *_where(job, now)]))
        yield from _field("", f"{job.name}: {facts}")
    if len(shown) > MAX_LISTED:
        yield from _field("", f"and {len(shown) - MAX_LISTED:,} more (--json lists them all)")


def _training(training: Training) -> str:
    facts = [
        None if training.loss is None else f"loss {training.loss:.4g}",
        None if training.validation_accuracy is None else f"ID-val top-1 {100 * training.validation_accuracy:.1f} %",
        None if training.samples_per_second is None else f"{training.samples_per_second:,.0f} samples/s",
    ]
    waits = training.data_wait_percent
    if waits is not None and waits >= WORTH_SAYING_PERCENT:
        facts.append(f"held up by data {waits:.0f} % of the time (data.workers, data.cache)")
    sentence = ", ".join(fact for fact in facts if fact)
    return f"{sentence}. {training.bottleneck}" if training.bottleneck else sentence


def _error(error: LastError, now: float) -> Iterator[str]:
    age = "" if error.time is None else f", {duration(max(0.0, now - error.time))} ago"
    lines = list(_field("error", f"{error.job}{age}: {error.text}"))
    yield from lines[:MAX_ERROR_LINES]
    if error.log is not None:
        yield from _field("", f"The end of {error.log}:")
        for line in error.log_tail:
            text = printable(line)
            yield " " * (MARGIN + 2) + (text if len(text) <= WIDTH - MARGIN - 2 else text[: WIDTH - MARGIN - 5] + "...")


def _word(state: str) -> str:
    return WORDS.get(str(state), str(state).replace("_", " "))


def _field(name: str, text: str) -> Iterator[str]:
    """A name at the left and its text beside it; a path longer than a line stays whole."""
    lines = textwrap.wrap(printable(text), WIDTH - MARGIN, break_long_words=False, break_on_hyphens=False) or [""]
    for index, line in enumerate(lines):
        yield f"{name if index == 0 else '':<{MARGIN}}{line}".rstrip()
