"""What submitit pickles: the name of a stage (and of a share of it) and a run directory, nothing about progress."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import submitit

from wiseft_dist.pipeline import execute
from wiseft_dist.run import Run


@dataclass(frozen=True)
class StageJob:
    """Runs one stage; how far it is, the stage finds out from disk, so it may be started again at any time."""

    run: Run
    stage: str
    part: str | None = None
    """Which job of the evaluation: ``1-of-3``."""

    def __call__(self) -> None:
        """Run the stage in this process."""
        signal.signal(signal.SIGTERM, partial(_end_or_requeue, signal.getsignal(signal.SIGUSR2)))
        execute(self.stage, self.run, part=self.part)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before a time limit or a preemption: come back as the same job."""
        return submitit.helpers.DelayedSubmission(self)


def _end_or_requeue(requeue: Any, number: int, frame: FrameType | None) -> None:
    """Answer SIGTERM, which submitit ignores; ``requeue`` is what it does at its own signal.

    Slurm sends it when it ends a job, to requeue it or for good, and to a job that is preempted and has a while to
    leave. In that while the job still counts as running, and one that leaves by itself would not come back: it is
    handed to submitit as at the signal for preemption.

    Raises:
        KeyboardInterrupt: on the first rank, where the job is not requeued.
    """
    if submitit.JobEnvironment().global_rank != 0:
        return  # the first rank decides
    if not _runs_in_slurm() or not callable(requeue):
        raise KeyboardInterrupt
    requeue(signal.SIGUSR2, frame)


def _runs_in_slurm() -> bool:
    """Whether Slurm counts this process's job as running, and not as being ended."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    command = ["squeue", "--noheader", "--format=%T", "--jobs", os.environ["SLURM_JOB_ID"]]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.split() == ["RUNNING"]
