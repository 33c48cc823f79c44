"""Who else is at work on a run: a batch script, a stage that was started by hand, jobs that nobody has noted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from wiseft_dist.claims import LEAVING_SECONDS, Claim, at_work
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.ledger import Entry, read_ledger, record
from wiseft_dist.pipeline import remaining
from wiseft_dist.ranks import Launcher, discover_launcher
from wiseft_dist.run import Run
from wiseft_dist.slurm import active_ids, ask

LOOK_SECONDS = 0.5


def refuse_beside_others(run: Run) -> None:
    """Nothing is started beside a batch job that does this run, or beside stages that somebody started by hand.

    What is just ending gets the time to leave. The caller holds the run's lock.

    Raises:
        UserError: naming who it is.
        RunError: if Slurm does not answer.
    """
    own, ledger = discover_launcher().job_id, read_ledger(run)
    scripts = [entry.job_id for entry in ledger.values() if entry.log is not None and entry.job_id != own]
    active = sorted(active_ids(scripts)) if scripts and shutil.which("squeue") else []
    if active:
        raise UserError(
            f"{run.path}: Slurm job {active[0]} waits or runs, and its batch script does the stages of this run; "
            f"nothing was started. Wait for it, or end it with `wiseft cancel {run.path}`."
        )
    known = {entry.job_id for entry in ledger.values()} | {own}
    deadline = time.monotonic() + LEAVING_SECONDS
    while found := _strangers(run, known):
        if time.monotonic() > deadline:
            name, claim = next(iter(found.items()))
            raise UserError(
                f"{run.path}: {_who(claim)} is at work on {name} of this run since {time.ctime(claim.since)}; nothing "
                "was started. Wait for it, or end it first."
            )
        time.sleep(LOOK_SECONDS)


def refuse_unknown_jobs(run: Run, noted: Collection[str] | None = None) -> None:
    """Slurm may hold jobs of a call that was killed before it could note them: they would run beside new ones.

    They are known by their batch scripts, which submitit writes into the run.

    Args:
        run: The run, or the folder of a sweep.
        noted: Slurm's ids of the jobs that are known. Left out: those of the run's ledger.

    Raises:
        UserError: naming them.
        RunError: if Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return  # whoever submits says that there is no Slurm here
    if noted is None:
        noted = [entry.job_id for entry in read_ledger(run).values()]
    known = {job_id.split("_")[0] for job_id in noted}
    answer = ask(["squeue", "--noheader", "--me", "--states=PENDING,RUNNING", "--format=%F|%o"])
    jobs = (line.strip().partition("|") for line in answer.splitlines())
    unknown = sorted({job_id for job_id, _, script in jobs if job_id not in known and _is_of(run, script)})
    if unknown:
        raise UserError(
            f"{run.path}: in the queue are jobs of this run that an earlier call submitted and could not note any more "
            f"({', '.join(unknown)}); nothing was started. `scancel {' '.join(unknown)}`, then run again."
        )


def record_batch_job(config: RunConfig, run: Run) -> None:
    """Remember the batch job that this process runs in as the one that does what is left of the run.

    Nothing is remembered elsewhere: who asks for an allocation may do anything in it. The caller holds the run's lock.

    Raises:
        UserError: if jobs of the run are in the queue, which would do the same.
        RunError: if Slurm does not answer.
    """
    launcher = discover_launcher()
    if not launcher.is_batch or launcher.is_submitted:
        return
    submitted = {entry.job_id for entry in read_ledger(run).values() if entry.executor == "slurm"}
    active = sorted(active_ids(sorted(submitted - {launcher.job_id})))
    if active:
        raise UserError(
            f"{run.path}: jobs of this run are in the queue ({', '.join(active)}), and this batch script would do the "
            f"same; nothing was started. `wiseft cancel {run.path}` takes them out."
        )
    log, now = _output(launcher), time.time()
    names = [job.name for step in remaining(config, run) for job in step.jobs]
    record(run, [Entry(name, launcher.job_id, str(log.parent), "slurm", now, str(log)) for name in names])


def _strangers(run: Run, known: set[str]) -> dict[str, Claim]:
    """Who is at work and is no job of this run's ledger, which would be followed."""
    return {name: claim for name, claim in at_work(run).items() if not claim.job_id or claim.job_id not in known}


def _who(claim: Claim) -> str:
    return f"Slurm job {claim.job_id}" if claim.job_id else f"process {claim.pid} on {claim.host}"


def _is_of(run: Run, script: str) -> bool:
    """Whether a job's script lies where the stages of this run have theirs."""
    path = Path(script)
    return path.name.startswith(".submission_file_") and path.parent.parent.resolve() == run.jobs.resolve()


def _output(launcher: Launcher) -> Path:
    """Where Slurm writes what the batch job prints."""
    try:
        lines = ask(["scontrol", "show", "job", launcher.job_id], patience_seconds=0.0).splitlines()
    except RunError:
        lines = []
    named = next((line.strip().removeprefix("StdOut=") for line in lines if line.strip().startswith("StdOut=")), None)
    return Path(named or Path(os.environ.get("SLURM_SUBMIT_DIR", ".")).absolute() / f"slurm-{launcher.job_id}.out")
