"""What is left of a job that ended: its own words in the run's events, and the end of its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.ledger import Entry, log_file
from wiseft_dist.launch.outcomes import Outcome, explain, outcome_of
from wiseft_dist.slurm import JobState

LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 64 * 1024
"""What of a log is read for its end: a progress bar can make one line of it very long."""


def failure_of(events: Sequence[dict[str, Any]], stage: str, part: str | None) -> dict[str, Any] | None:
    """The first failure since the job last started: what other ranks say after it is about losing each other.

    The beginning of a part of the evaluation is no start of its job: other ranks go on while one has failed.
    """
    failure = None
    for event in events:
        if event.get("stage") == stage and event.get("job") in (None, part):
            name = event.get("event")
            if name == "attempt" or (name == "started" and "start" not in event):
                failure = None
            elif name == "failed":
                failure = failure or event
    return failure


def ended_without_result(
    entry: Entry, state: JobState | None, failure: dict[str, Any] | None, *, more: str = ""
) -> UserError | RunError:
    """What to tell of a job that is not active and left no result: its end as Slurm knows it, its words, its log.

    A mistake in the configuration stays one: exit code 2. ``more`` is said at the end.
    """
    log = log_file(entry, 0)
    tail = log_tail(log)
    outcome = outcome_of(state, has_result=False, failure=failure, log=tail)
    for kind in (UserError, RunError):
        if outcome is Outcome.failed and failure is not None and failure.get("kind") == kind.__name__:
            return kind(f"{entry.name} failed: {failure['error']}\nIts log: {log}{more}")
    if entry.executor == "local" and outcome in (Outcome.failed, Outcome.forgotten, Outcome.cancelled):
        reason = f" ({failure['kind']}: {failure['error']})" if failure else ""
        return RunError(f"{entry.name} (job {entry.job_id}) ended without its result{reason}.\n{tail}{more}")
    known = state or JobState(entry.job_id, "")
    return RunError(f"{explain(outcome, entry.name, known, failure)}\n{tail}{more}")


def log_tail(log: Path, *, num_lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log under a line that names it."""
    lines = last_lines(log, num_lines)
    if lines is None:
        return f"It left no log at {log}: it never started."
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines)])


def last_lines(log: Path, num_lines: int) -> list[str] | None:
    """The last lines of a file of any length; of a line that a progress bar wrote over, what was last to be seen.

    None if there is no such file.
    """
    try:
        with log.open("rb") as handle:
            size = handle.seek(0, 2)
            start = max(0, size - max(LOG_TAIL_BYTES, 400 * num_lines))
            handle.seek(start)
            text = handle.read().decode(errors="replace")
    except OSError:
        return None
    lines = text.split("\n")[1 if start else 0 :]
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()][-num_lines:]
