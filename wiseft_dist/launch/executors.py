"""Submitting a step's jobs: submitit's local executor, or Slurm with dependencies between steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import submitit

from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.job import StageJob
from wiseft_dist.launch.processes import end_processes
from wiseft_dist.pipeline import Job
from wiseft_dist.run import Run

MAX_REQUEUES = 100
"""Time limits that a job may run into; what it has committed by then is not lost."""
SQUEUE_PATIENCE = 5
"""Times in a row that squeue may fail to answer."""


@dataclass(frozen=True)
class Submitted:
    """A job that was handed to an executor."""

    job: Job
    handle: Any

    @property
    def job_id(self) -> str:
        """The executor's name for it."""
        return str(self.handle.job_id)

    def log(self) -> Path:
        """What the job's first process prints."""
        return Path(self.handle.paths.stdout)


class Executor(Protocol):
    """Where jobs run: what watching them needs to know."""

    poll_seconds: float
    """Time between two looks at the jobs."""
    visible_seconds: float
    """How long its file system may take to show what an ended job has written."""

    def active(self, submitted: Sequence[Submitted]) -> set[str]:
        """The ids of those that are waiting or running."""


def make_executor(config: RunConfig, run: Run) -> LocalExecutor | SlurmExecutor:
    """The executor that ``launch.executor`` names."""
    return SlurmExecutor(run) if config.launch.executor == "slurm" else LocalExecutor(run)


class LocalExecutor:
    """Processes on this machine, through the same submitit path that a cluster uses."""

    poll_seconds = 0.5
    visible_seconds = 0.0

    def __init__(self, run: Run) -> None:
        self._run = run
        self._cores = len(os.sched_getaffinity(0))

    def max_parallel(self, resources: Resources) -> int:
        """One a core; jobs that want GPUs run in turn, because submitit gives each the first ones."""
        return 1 if resources.gpus_per_node else self._cores

    def submit(self, job: Job, *, at_once: int) -> Submitted:
        """Start a job now; ``at_once`` is how many of its step share this machine."""
        resources = job.resources
        executor = submitit.LocalExecutor(_folder(self._run, job.stage))
        executor.update_parameters(
            tasks_per_node=resources.num_tasks,  # this machine stands for all nodes
            gpus_per_node=resources.gpus_per_node * resources.nodes,
            timeout_min=resources.timeout_minutes,
            stderr_to_stdout=True,
            setup=list(resources.setup),
        )
        cores = str(self._cores_of(job, at_once))
        with _clean_environment(WISEFT_CPUS_PER_TASK=cores), _stderr_to(self._run.jobs / "controllers.log"):
            return Submitted(job, executor.submit(StageJob(self._run, job.stage, job.part)))

    def active(self, submitted: Sequence[Submitted]) -> set[str]:
        """Those whose processes live."""
        return {item.job_id for item in submitted if not item.handle.done()}

    def cancel(self, submitted: Sequence[Submitted]) -> None:
        """Interrupt their processes, and whatever these have started, and wait until they are gone."""
        end_processes([int(item.job_id) for item in submitted], reap=lambda: self.active(submitted))

    def _cores_of(self, job: Job, at_once: int) -> int:
        """Cores of one process: as configured, else the machine's divided by all processes that run now."""
        share = self._cores // (job.resources.num_tasks * at_once)
        return job.resources.cpus_per_task or max(1, share)


class SlurmExecutor:
    """Slurm jobs; the jobs of a step are one array, steps are chained by ``afterok``."""

    poll_seconds = 2.0
    visible_seconds = 20.0

    def __init__(self, run: Run) -> None:
        self._run = run
        self._failures = 0

    def submit(self, jobs: Sequence[Job], after: Sequence[Submitted]) -> list[Submitted]:
        """Submit the jobs of a step, to start when those of ``after`` have succeeded; else Slurm drops them."""
        stage, resources = jobs[0].stage, jobs[0].resources
        try:
            executor = submitit.SlurmExecutor(_folder(self._run, stage), max_num_timeout=MAX_REQUEUES)
        except RuntimeError as error:
            raise UserError(
                "launch.executor is slurm, but there is no `srun` here: use launch.executor=local."
            ) from error
        executor.update_parameters(**_slurm_parameters(self._run, stage, resources, after))
        calls = [StageJob(self._run, job.stage, job.part) for job in jobs]
        try:
            with _clean_environment():
                handles = [executor.submit(calls[0])] if len(calls) == 1 else executor.submit_array(calls)
        except submitit.core.utils.FailedJobError as error:
            raise RunError(f"Slurm refused the {stage} job: {_last_line(str(error))}") from error
        return [Submitted(job, handle) for job, handle in zip(jobs, handles, strict=True)]

    def active(self, submitted: Sequence[Submitted]) -> set[str]:
        """Those that squeue knows as waiting or running."""
        if not submitted:
            return set()
        ids = [item.job_id for item in submitted]
        try:
            active = active_ids(ids)
        except RunError:  # a busy controller; only its lasting silence is an error
            self._failures += 1
            if self._failures >= SQUEUE_PATIENCE:
                raise
            return set(ids)
        self._failures = 0
        return active

    def attach(self, job: Job, job_id: str) -> Submitted:
        """A job that an earlier call submitted."""
        return Submitted(job, submitit.SlurmJob(_folder(self._run, job.stage), job_id))


def active_ids(job_ids: Sequence[str]) -> set[str]:
    """Which Slurm jobs are waiting or running; ``123_4`` names a task of an array.

    Raises:
        RunError: if squeue does not answer.
    """
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%i|%T",
        "--user",
        str(os.getuid()),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RunError(f"squeue does not answer: {_last_line(answer.stderr)}")
    states = dict(line.split("|") for line in answer.stdout.split())
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
    return {job_id for job_id in job_ids if job_id in states and states[job_id] not in ended}


def _slurm_parameters(run: Run, stage: str, resources: Resources, after: Sequence[Submitted]) -> dict[str, Any]:
    cores = resources.cpus_per_task or 1
    additional: dict[str, Any] = {name.replace("_", "-"): value for name, value in resources.extra.items()}
    if after:
        ids = sorted({item.job_id.split("_")[0] for item in after})
        additional |= {"dependency": "afterok:" + ":".join(ids), "kill-on-invalid-dep": "yes"}
    parameters = {
        "job_name": f"{run.path.name}-{stage}",
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": cores,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": f"{round(resources.mem_gb * 1024)}M" if resources.mem_gb else None,
        "time": resources.timeout_minutes,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "setup": list(resources.setup) or None,
        "array_parallelism": resources.max_parallel,
        "stderr_to_stdout": True,
        # Since Slurm 22.05 srun does not take the cores a task from sbatch; a rank that dies should end the others.
        "srun_args": [f"--cpus-per-task={cores}", "--kill-on-bad-exit=1"],
        "additional_parameters": additional,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _folder(run: Run, stage: str) -> Path:
    return run.jobs / stage


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"


@contextmanager
def _clean_environment(**settings: str) -> Iterator[None]:
    """What a job inherits: of a surrounding job or process group the cluster's address alone, and ``settings``."""
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env(extra_names=tuple(settings)):
        os.environ.update(kept | settings)
        try:
            yield
        finally:
            for name in settings:
                del os.environ[name]


@contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """What processes started meanwhile complain to: submitit's controllers print a traceback at every Ctrl-C."""
    sys.stderr.flush()
    ours = os.dup(2)
    try:
        with log.open("a") as handle:
            os.dup2(handle.fileno(), 2)
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)
