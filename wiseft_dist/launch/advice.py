"""What whoever looks at a run should do next, in a sentence or two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_dist.launch.outcomes import Outcome

if TYPE_CHECKING:
    from wiseft_dist.launch.status_records import JobStatus, RunStatus


def what_next(status: RunStatus) -> str:
    """The next step of a person who sees this status."""
    run, again = status.run, f"`wiseft run {status.run}/config.yaml`"
    if status.state == "finished":
        has_report = any(stage.stage == "report" for stage in status.stages)
        return f"Nothing is left to do: open {run}/report/index.html." if has_report else "Nothing is left to do."
    if status.state == "unknown":
        return f"Look again where Slurm answers. {again} there goes on from what is committed."
    if status.state == "failed":
        trouble = _trouble(status)
        if "run again" in trouble:
            return trouble.replace("run again to go on", f"{again} goes on").replace("run again", again)
        return f"{trouble} Then {again} goes on from what is committed."
    causes = [job for job in _causes(status) if job.executor == "slurm" and job.state != Outcome.blocked]
    if causes:
        beside = f"{again} adds it beside the jobs that go on; `wiseft cancel {run}` ends them."
        return f"{_mend(status, causes[0])} Then {beside}"
    where = f"process {status.controller.pid} on {status.controller.host}" if status.controller else ""
    if status.state == "stopped" and where:
        return f"Nothing is queued. `wiseft run` ({where}) may be at work, or was killed: {again} goes on, or says so."
    if where:
        return f"Nothing: `wiseft run` ({where}) is at work. `wiseft logs {run} --follow` shows what it says."
    if status.state in ("running", "waiting"):
        return f"Nothing: the jobs go on by themselves. {again} follows them, `wiseft cancel {run}` ends them."
    return f"Nothing is at work on this run: {again} goes on from what is committed."


def _trouble(status: RunStatus) -> str:
    """About the first job that needs somebody; blocked ones only suffer from it."""
    causes = _causes(status)
    return _mend(status, causes[0]) if causes else "Mend what failed."


def _causes(status: RunStatus) -> list[JobStatus]:
    """The jobs that came to a bad end; those that are blocked by them only where nothing else did."""
    unusual = [job for stage in status.stages for job in stage.jobs if job.explanation and job.state not in QUIET]
    return [job for job in unusual if job.state != Outcome.blocked] or unusual


def _mend(status: RunStatus, job: JobStatus) -> str:
    if job.state == Outcome.failed:
        return f"Mend why {job.name} failed (`wiseft logs {status.run} {job.name}`)."
    return job.explanation.partition(" Its last words:")[0]


QUIET = (Outcome.waiting, Outcome.running, Outcome.finished)
