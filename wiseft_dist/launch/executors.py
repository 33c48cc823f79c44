"""Submitting a step's jobs: submitit's local executor, or Slurm with dependencies between steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit

from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.job import StageJob
from wiseft_dist.launch.ledger import Entry, record
from wiseft_dist.launch.processes import end_processes, signals_held
from wiseft_dist.launch.sbatch import job_python, sbatch_options, slurm_parameters
from wiseft_dist.launch.snapshot import snapshot
from wiseft_dist.pipeline import Job
from wiseft_dist.run import Run
from wiseft_dist.slurm import COMMAND_SECONDS, max_array_size

MAX_REQUEUES = 1_000_000
"""Submitit's own limit, which counts time limits whatever was done in between; ours counts those without progress."""


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

    def entry(self, executor: Literal["slurm", "local"]) -> Entry:
        """Its line in the run's ledger."""
        folder = Path(self.handle.paths.folder)
        return Entry(self.job.name, self.job_id, str(folder.absolute()), executor, time.time())


def make_executor(config: RunConfig, run: Run) -> LocalExecutor | SlurmExecutor:
    """The executor that ``launch.executor`` names."""
    return SlurmExecutor(run) if config.launch.executor == "slurm" else LocalExecutor(run)


class LocalExecutor:
    """Processes on this machine, through the same submitit path that a cluster uses."""

    poll_seconds = 0.5

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
        environment = {name: str(value) for name, value in resources.environment.items()}
        settings = environment | {"WISEFT_CPUS_PER_TASK": cores}
        with _clean_environment(**settings), _stderr_to(self._run.jobs / "controllers.log"):
            submitted = Submitted(job, executor.submit(StageJob(self._run, job.stage, job.part)))
        record(self._run, [submitted.entry("local")])
        return submitted

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

    def __init__(self, run: Run) -> None:
        self._run = run
        self._submitted_arrays: set[str] = set()

    def submit(self, jobs: Sequence[Job], after: Sequence[Submitted]) -> list[Submitted]:
        """Submit the jobs of a step, to start when those of ``after`` have succeeded; else Slurm drops them.

        What Slurm has taken stands in the run's ledger, also where it refuses the rest.
        """
        stage, resources = jobs[0].stage, jobs[0].resources
        ids = sorted({self._awaited(item.job_id) for item in after})
        pieces = _pieces(jobs, max(1, max_array_size()) if len(jobs) > 1 else 1)
        executor = slurm_executor(
            _folder(self._run, stage),
            f"{self._run.path.name}-{stage}",
            resources.model_copy(update={"max_parallel": max(1, resources.max_parallel // len(pieces))}),
            dependency=f"afterok:{':'.join(ids)}" if ids else None,
            code=self._code(),
            run_folders=[self._run.path],
        )
        return [submitted for piece in pieces for submitted in self._submit_piece(executor, piece)]

    def _submit_piece(self, executor: submitit.SlurmExecutor, jobs: Sequence[Job]) -> list[Submitted]:
        """Submit jobs as one array, or one job as itself."""
        calls = [StageJob(self._run, job.stage, job.part) for job in jobs]
        with signals_held():  # a job that Slurm has taken and nobody has noted would run beside the next call's
            with submitting(jobs[0].stage):
                handles = [executor.submit(calls[0])] if len(calls) == 1 else executor.submit_array(calls)
            submitted = [Submitted(job, handle) for job, handle in zip(jobs, handles, strict=True)]
            record(self._run, [item.entry("slurm") for item in submitted])
        self._submitted_arrays.add(submitted[0].job_id.split("_")[0])
        return submitted

    def _awaited(self, job_id: str) -> str:
        """What a dependency names: an array that was submitted just now, and of an earlier one only what still runs."""
        array = job_id.split("_")[0]
        return array if array in self._submitted_arrays else job_id

    def _code(self) -> Path | None:
        return snapshot(self._run.jobs) if self._run.load_config().launch.snapshot else None

    def attach(self, job: Job, job_id: str) -> Submitted:
        """A job that an earlier call submitted."""
        return Submitted(job, submitit.SlurmJob(_folder(self._run, job.stage), job_id))


def _pieces(jobs: Sequence[Job], longest: int) -> list[Sequence[Job]]:
    """The jobs of a step, in arrays of at most ``longest``."""
    return [jobs[start : start + longest] for start in range(0, len(jobs), longest)]


def slurm_executor(
    folder: Path,
    name: str,
    resources: Resources,
    *,
    dependency: str | None = None,
    code: Path | None = None,
    run_folders: Sequence[Path] = (),
) -> submitit.SlurmExecutor:
    """Submitit's executor, told everything that :func:`slurm_parameters` knows. Submit inside :func:`submitting`.

    Raises:
        UserError: where Slurm's commands are not installed.
    """
    python = job_python(resources, code=code, run_folders=run_folders)
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_REQUEUES, python=python)
    except RuntimeError as error:
        raise UserError("launch.executor is slurm, but there is no `srun` here: use launch.executor=local.") from error
    executor.update_parameters(
        **slurm_parameters(name, resources, dependency=dependency, code=code, run_folders=run_folders)
    )
    return executor


def refusal(resources: Resources) -> str:
    """Why sbatch would not take a job as it stands today, in Slurm's words; nothing if it would, or does not answer."""
    command = ["sbatch", "--test-only", "--wrap=true", *sbatch_options(resources)]
    try:
        with _clean_environment():
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    words = _last_line(done.stderr)
    return re.sub(r"^(sbatch: |error: |allocation failure: )+", "", words) if done.returncode else ""


@contextmanager
def submitting(name: str) -> Iterator[None]:
    """Around a submission: jobs inherit nothing of a surrounding job, and a refusal becomes a sentence.

    Raises:
        RunError: in Slurm's words.
    """
    try:
        with _clean_environment():
            yield
    except submitit.core.utils.FailedJobError as error:
        raise RunError(f"Slurm refused the {name} job: {_last_line(str(error))}") from error


def _folder(run: Run, stage: str) -> Path:
    return run.jobs / stage


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith("Try ")]  # sbatch's own --help
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
