"""What whoever looks at a run should do next, in a sentence or two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_dist.launch.outcomes import Outcome

if TYPE_CHECKING:
    from wiseft_dist.launch.status import RunStatus


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
    if status.controller is not None:
        where = f"process {status.controller.pid} on {status.controller.host}"
        return f"Nothing: `wiseft run` ({where}) is at work. `wiseft logs {run} --follow` shows what it says."
    if status.state in ("running", "waiting"):
        return f"Nothing: the jobs go on by themselves. {again} follows them, `wiseft cancel {run}` ends them."
    return f"Nothing is at work on this run: {again} goes on from what is committed."


def _trouble(status: RunStatus) -> str:
    """About the first job that needs somebody; blocked ones only suffer from it."""
    unusual = [job for stage in status.stages for job in stage.jobs if job.explanation and job.state not in QUIET]
    causes = [job for job in unusual if job.state != Outcome.blocked] or unusual
    if not causes:
        return "Mend what failed."
    if causes[0].state == Outcome.failed:
        return f"Mend why {causes[0].name} failed (`wiseft logs {status.run} {causes[0].name}`)."
    return causes[0].explanation.partition(" Its last words:")[0]


QUIET = (Outcome.waiting, Outcome.running, Outcome.finished)
