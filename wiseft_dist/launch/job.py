"""What submitit pickles: the name of a stage (and of a share of it) and a run directory, nothing about progress."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.errors import RunError
from wiseft_dist.findings import only
from wiseft_dist.launch.sbatch import REQUEUE_FILE
from wiseft_dist.node_checks import check_here
from wiseft_dist.pipeline import execute
from wiseft_dist.ranks import discover_launcher, discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event

LONGEST_GRACE_SECONDS = 600.0
"""More than Slurm gives to a job that it ends."""


@dataclass(frozen=True)
class StageJob:
    """Runs one stage; how far it is, the stage finds out from disk, so it may be started again at any time."""

    run: Run
    stage: str
    part: str | None = None
    """Which job of the evaluation: ``1-of-3``."""

    def __call__(self) -> None:
        """Run the stage in this process."""
        requeue = partial(_requeue, signal.getsignal(signal.SIGUSR2))
        signal.signal(signal.SIGUSR2, requeue)
        signal.signal(signal.SIGTERM, partial(_end_or_requeue, requeue))
        execute(self.stage, self.run, part=self.part, check=self._check)

    def _check(self, config: RunConfig) -> None:
        check_allocation(self.stage, config)
        if self.stage in ("merge", "evaluate") and config.launch.preflight.enabled:
            check_machine(config, self.run, self.stage)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit on the first rank before a time limit or a preemption: come back as the same job."""
        with suppress(OSError):  # nothing must keep the job from being requeued
            append_event(self.run.events_file, stage=self.stage, event="preempting", job=self.part)
        return submitit.helpers.DelayedSubmission(self)


def check_allocation(stage: str, config: RunConfig) -> None:
    """Compare the processes that were started with those that were planned, before any of them waits for others.

    Raises:
        RunError: if there are more, fewer, or they lie on other nodes.
    """
    planned: Resources = getattr(config.launch, stage)
    found = discover_ranks().world_size
    tasks = _tasks_by_node(os.environ)
    if found == planned.num_tasks and tasks in ([], [planned.tasks_per_node] * planned.nodes):
        return
    nodes = f" on {len(tasks)} nodes ({', '.join(map(str, tasks))})" if tasks else ""
    raise RunError(
        f"this job has {found} processes{nodes}, and launch.{stage} plans {planned.num_tasks} on {planned.nodes} nodes "
        f"({planned.tasks_per_node} each): Slurm or a setting in launch.{stage}.extra has changed it. Make them agree, "
        "then `wiseft run` again."
    )


def check_machine(config: RunConfig, run: Run, stage: str) -> None:
    """Look at the machine before a stage whose processes do not begin with a preflight.

    Raises:
        RunError: if something is wrong with it.
    """
    ranks, device_index = discover_ranks(), None
    if stage == "evaluate" and config.launch.evaluate.gpus_per_node:
        from wiseft_dist.distributed import device_of

        device_index = device_of(ranks).index
    errors = only(check_here(config, run, stage, ranks, device_index), "error")
    if errors:
        texts = "; ".join(finding.text for finding in errors)
        raise RunError(
            f"{errors[0].host} is not fit for {stage}: {texts}. Mend this, or leave the node out with launch.{stage} "
            f'`extra: {{exclude: "{errors[0].host}"}}`, then `wiseft run` again.'
        )


def _tasks_by_node(env: Mapping[str, str]) -> list[int]:
    """What Slurm writes as ``2(x3),1``: the processes of each node of this step; nothing elsewhere."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE", "") if env.get("SUBMITIT_EXECUTOR") == "slurm" else ""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in runs for _ in range(int(times or 1))]


def _requeue(submitits: Any, number: int, frame: FrameType | None) -> None:
    """Answer SIGUSR2 as submitit does; where a container has no `scontrol`, ask the batch script to requeue the job.

    Raises:
        KeyboardInterrupt: where nobody answers that signal.
        SystemExit: after it is done.
    """
    if not callable(submitits):
        raise KeyboardInterrupt
    try:
        submitits(number, frame)
    except FileNotFoundError:  # scontrol: by now submitit has written all that the next start needs
        if REQUEUE_FILE not in os.environ:
            raise
        Path(os.environ[REQUEUE_FILE]).touch()
        raise SystemExit(1) from None


def _end_or_requeue(requeue: Callable[[int, FrameType | None], None], number: int, frame: FrameType | None) -> None:
    """Answer SIGTERM, which submitit ignores; ``requeue`` is what is done at the signal for preemption.

    Slurm sends it when it ends a job, to requeue it or for good; srun when another rank has died; and a job that is
    preempted and has a while to leave gets it too. Such a job would not come back if it left by itself.

    Raises:
        KeyboardInterrupt: on the first rank, where the job is not requeued.
    """
    if submitit.JobEnvironment().global_rank != 0:
        return  # the first rank decides
    is_preempted = _is_preempted()
    if is_preempted is None:  # Slurm or srun ends this process soon; one that leaves a preempted job would end the job
        time.sleep(LONGEST_GRACE_SECONDS)
    if not is_preempted:
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the requeue sends one to the job that asks for it
    requeue(signal.SIGUSR2, frame)


def _is_preempted() -> bool | None:
    """Whether Slurm lets this process's job run on only for the grace time of a preemption; None if nobody can tell."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    # Not SLURM_JOB_ID: of one task of each array that is the whole array's, too.
    command = ["scontrol", "--oneliner", "show", "job", discover_launcher().job_id]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # in a container
        return None
    fields = dict(pair.split("=", 1) for pair in answer.stdout.split() if "=" in pair)
    if fields.get("JobState") == "CANCELLED":
        return False
    # Both as 2026-05-31T23:59:59; a time before this start, or the word None, is of no preemption now.
    times = (fields.get("PreemptTime", ""), fields.get("StartTime", ""))
    is_now = fields.get("JobState") == "RUNNING" and times[0][:1].isdigit() and times[0] >= times[1]
    return True if is_now else None
