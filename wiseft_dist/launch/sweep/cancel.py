"""Ending a sweep: whoever works on its folder here, then the jobs of all runs, with one word to Slurm."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

import psutil

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.cancel import GONE_SECONDS, LEAVE_SECONDS, wait_until
from wiseft_dist.launch.known_jobs import known_jobs
from wiseft_dist.launch.lock import Holder, holder
from wiseft_dist.launch.sweep.directory import Sweep
from wiseft_dist.run import Run
from wiseft_dist.slurm import active_ids, cancel_jobs


@dataclass(frozen=True)
class SweepUnderWay:
    """What there is to cancel of a sweep."""

    job_ids: dict[str, tuple[str, ...]]
    """Of Slurm, by the names of the runs; the soup is one of them."""
    controller: Holder | None
    """The `wiseft sweep` that is at work on this machine."""

    @property
    def names(self) -> list[str]:
        """What a person is asked about: ``lr=1e-05 (3 jobs)``."""
        jobs = [f"{name} ({len(ids)} job{'s' if len(ids) > 1 else ''})" for name, ids in self.job_ids.items()]
        return jobs + ([] if self.controller is None else [f"`wiseft sweep` (process {self.controller.pid})"])


def sweep_under_way(sweep: Sweep) -> SweepUnderWay:
    """What of a sweep waits or runs. Slurm is asked once about all runs.

    Raises:
        UserError: if a `wiseft sweep` on another machine works on it without Slurm.
        RunError: if Slurm does not answer.
    """
    names = [*(member.name for member in sweep.members), sweep.soup_run.path.name]
    jobs = {name: known_jobs(sweep.run(name)).values() for name in names}
    ids = {name: [entry.job_id for entry in each if entry.executor == "slurm"] for name, each in jobs.items()}
    active = active_ids([job_id for each in ids.values() for job_id in each])
    found = {name: tuple(job_id for job_id in dict.fromkeys(each) if job_id in active) for name, each in ids.items()}
    controller = holder(Run(sweep.folder))
    if controller is not None and not controller.is_here:
        if not any(ids.values()):
            raise UserError(
                f"{sweep.folder}: a `wiseft sweep` on {controller.host} (process {controller.pid}) is at work on it, "
                f"or was killed there. Run `wiseft cancel {sweep.folder}` on {controller.host}."
            )
        controller = None  # it only follows, and ends with the jobs
    return SweepUnderWay({name: each for name, each in found.items() if each}, controller)


def cancel_sweep(sweep: Sweep, found: SweepUnderWay) -> None:
    """End what :func:`sweep_under_way` found, and wait until it is gone.

    Raises:
        RunError: if something is still there after ten minutes.
    """
    if found.controller is not None:  # first: it would start or submit the next run
        _end(found.controller.pid)
    told: set[str] = set()

    def is_gone() -> bool:
        left = [job_id for ids in sweep_under_way(sweep).job_ids.values() for job_id in ids]
        cancel_jobs([job_id for job_id in left if job_id not in told])
        told.update(left)
        return not left

    if not wait_until(is_gone, GONE_SECONDS):
        raise RunError(f"{sweep.folder}: Slurm was told to cancel {', '.join(sorted(told))}, and has not ended all.")


def _end(pid: int) -> None:
    """Tell a `wiseft sweep` to end; what it runs here is interrupted first, and saves."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not wait_until(lambda: not psutil.pid_exists(pid), LEAVE_SECONDS):
        raise RunError(f"`wiseft sweep` (process {pid}) was told to end, and has not yet.")
