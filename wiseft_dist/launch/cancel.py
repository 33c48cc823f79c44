"""Ending what a run has under way, here or on Slurm. What is committed stays, and fine-tuning saves first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.known_jobs import known_jobs
from wiseft_dist.launch.ledger import Entry
from wiseft_dist.launch.local_jobs import is_alive
from wiseft_dist.launch.lock import Holder, holder
from wiseft_dist.launch.processes import end_processes
from wiseft_dist.pipeline import STAGES
from wiseft_dist.run import Run
from wiseft_dist.slurm import active_ids, cancel_jobs

POLL_SECONDS = 0.5
GONE_SECONDS = 600.0
"""How long jobs have for their last checkpoint. Slurm kills them earlier where its KillWait is shorter."""
LEAVE_SECONDS = 60.0
"""How long a `wiseft run` whose jobs are gone has to end."""


@dataclass(frozen=True)
class UnderWay:
    """What there is to cancel."""

    slurm: tuple[Entry, ...]
    local: tuple[Entry, ...]
    controller: Holder | None
    """The `wiseft run` that starts the run's local jobs, if it is to end too."""

    @property
    def job_ids(self) -> list[str]:
        """Slurm's; one job may be that of several stages."""
        return list(dict.fromkeys(entry.job_id for entry in self.slurm))

    @property
    def names(self) -> list[str]:
        """What a person is asked about: ``finetune (job 17)``."""
        shared: dict[str, list[str]] = {}
        for entry in self.slurm:
            shared.setdefault(entry.job_id, []).append(entry.name)
        jobs = [f"{', '.join(names)} (job {job_id})" for job_id, names in shared.items()]
        jobs += [f"{entry.name} (process {entry.job_id})" for entry in self.local]
        alone = self.controller is not None and not self.local
        return jobs + ([f"`wiseft run` (process {self.controller.pid})"] if alone and self.controller else [])


def under_way(run: Run, stage: str | None = None) -> UnderWay:
    """What of a run waits or runs.

    Args:
        run: The run.
        stage: Only this stage, or one of its jobs.

    Raises:
        UserError: if a `wiseft run` on another machine is at work on local jobs, or there is no such stage or job.
        RunError: if Slurm does not answer.
    """
    jobs = known_jobs(run)
    if stage not in (None, *STAGES, *jobs):
        raise UserError(
            f"{stage} is neither a stage ({', '.join(STAGES)}) nor a job that was submitted for {run.path}: nothing "
            "was cancelled."
        )
    entries = [entry for entry in jobs.values() if stage in (None, entry.name, entry.stage)]
    queued = [entry for entry in entries if entry.executor == "slurm"]
    active = active_ids([entry.job_id for entry in queued])
    local = tuple(entry for entry in entries if entry.executor == "local" and is_alive(entry))
    controller = holder(run) if run.load_config().launch.executor == "local" else None
    if controller is not None and not controller.is_here:
        raise UserError(
            f"{run.path}: a `wiseft run` on {controller.host} (process {controller.pid}) is at work on this run, or "
            f"was killed there. Run `wiseft cancel {run.path}` on {controller.host}."
        )
    is_meant = stage is None or bool(local)
    return UnderWay(tuple(e for e in queued if e.job_id in active), local, controller if is_meant else None)


def cancel(run: Run, found: UnderWay, stage: str | None = None) -> None:
    """End what :func:`under_way` found, and wait until it is gone.

    Raises:
        RunError: if something is still there after ten minutes.
    """
    if found.local or found.controller is not None:
        _end_local(found)
    if found.slurm:
        _end_slurm(run, stage)


def _end_slurm(run: Run, stage: str | None) -> None:
    """Cancel, also what somebody submits meanwhile, until nothing is left."""
    told: set[str] = set()

    def is_gone() -> bool:
        ids = under_way(run, stage).job_ids
        new = [job_id for job_id in ids if job_id not in told]
        told.update(new)
        cancel_jobs(new)
        return not ids

    if not wait_until(is_gone, GONE_SECONDS):
        left = ", ".join(under_way(run, stage).job_ids)
        raise RunError(f"{run.path}: Slurm was told to cancel {left}, and has not ended them yet.")


def _end_local(found: UnderWay) -> None:
    """Interrupt the jobs' ranks, which save and end; then whoever would start the next job; then what is left."""
    ranks = [child for entry in found.local for child in _children(int(entry.job_id))]
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGINT)
    wait_until(lambda: not any(map(_lives, ranks)), GONE_SECONDS)
    if found.controller is not None:
        with suppress(ProcessLookupError):
            os.kill(found.controller.pid, signal.SIGTERM)
        wait_until(lambda: found.controller is None or not psutil.pid_exists(found.controller.pid), LEAVE_SECONDS)
    end_processes([int(entry.job_id) for entry in found.local if is_alive(entry)], reap=lambda: None)


def _children(pid: int) -> list[psutil.Process]:
    """Submitit's controller starts one process a rank, through a shell where there are setup lines."""
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return children
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
