"""The same checks on a node of each partition: one small job each, submitted as a run's own jobs are."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.launch.doctor.cluster import Partition, read_partitions
from wiseft_dist.launch.doctor.machine import check_machine
from wiseft_dist.launch.doctor.sources import check_sources
from wiseft_dist.launch.executors import slurm_executor, submitting
from wiseft_dist.launch.snapshot import snapshot
from wiseft_dist.pipeline import STAGES
from wiseft_dist.slurm import JobState, cancel_jobs, job_states

POLL_SECONDS = 1.0
RUN_SECONDS = 300.0
"""How long the checks themselves may take on a node: a cold import of PyTorch, and a GPU that hangs."""
BUSY = ("Resources", "Priority", "None", "")
"""Reasons to wait that say nothing is wrong."""


@dataclass(frozen=True)
class NodeChecks:
    """What the job runs. It is pickled: everything it needs is in it."""

    config: RunConfig | None
    num_gpus: int

    def __call__(self) -> list[Finding]:
        """Look at the node."""
        found = check_machine(self.config, wanted_gpus=self.num_gpus)
        return found + (check_sources(self.config) if self.config else [])


@dataclass(frozen=True)
class _Sent:
    partition: Partition
    handle: Any

    @property
    def job_id(self) -> str:
        return str(self.handle.job_id)

    @property
    def result(self) -> Path:
        return Path(self.handle.paths.result_pickle)


def check_nodes(config: RunConfig | None, partitions: Sequence[Partition], *, seconds: float) -> list[Finding]:
    """Check a node of each partition, side by side; nothing is left of the jobs.

    Args:
        config: A run: its account, qos, setup, environment and container are used.
        partitions: As :func:`choose_partitions` gives them.
        seconds: How long a job may wait for a node.

    Raises:
        UserError: if there is no Slurm.
        RunError: if it does not answer.
    """
    found: list[Finding] = []
    with _shared_folder(config) as folder:
        sent: list[_Sent] = []
        try:
            code = snapshot(folder)
            for partition in partitions:
                try:
                    sent.append(_submit(config, partition, folder, code, seconds))
                except RunError as error:
                    found.append(Finding("job", "error", str(error), partition.name))
            found += _gather(sent, config, seconds=seconds)
        finally:
            cancel_jobs([job.job_id for job in sent])
            _wait_for_the_end(sent)
    return found


def choose_partitions(config: RunConfig | None, names: Sequence[str]) -> list[Partition]:
    """Those of given names. None given: those that the configuration names, else all.

    Raises:
        UserError: if one does not exist.
        RunError: if Slurm does not answer.
    """
    known = {partition.name: partition for partition in read_partitions()}
    if not names and config is not None:
        given = [getattr(config.launch, stage).partition for stage in STAGES]
        names = list(dict.fromkeys(name for each in given if each for name in each.split(",")))
    for name in names:
        if name not in known:
            raise UserError(f"--partition: {name} does not exist, or you may not use it; there are {', '.join(known)}.")
    return [known[name] for name in names or known]


def _submit(config: RunConfig | None, partition: Partition, folder: Path, code: Path, seconds: float) -> _Sent:
    resources = _small(config, partition, seconds)
    mounts = [folder] if config is None else [folder, Path(config.output)]
    executor = slurm_executor(folder / partition.name, "wiseft-doctor", resources, code=code, run_folders=mounts)
    with submitting(f"{partition.name} check"):
        return _Sent(partition, executor.submit(NodeChecks(config, resources.gpus_per_node)))


def _small(config: RunConfig | None, partition: Partition, seconds: float) -> Resources:
    """One process and, where there are GPUs, one of them, with the settings of a stage of this partition."""
    stages = [getattr(config.launch, stage) for stage in STAGES] if config else []
    own = [each for each in stages if partition.name in (each.partition or "").split(",")]
    given: Resources = next(iter([*own, *stages]), Resources())
    return given.model_copy(
        update={
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": 1,
            "gpus_per_node": min(1, partition.gpus_per_node),
            "mem_gb": None,
            "timeout_minutes": math.ceil((RUN_SECONDS + seconds) / 60),
            "warning_seconds": 1,
            "partition": partition.name,
            "constraint": given.constraint if own else None,
            "extra": given.extra if own else {},
        }
    )


def _gather(sent: Sequence[_Sent], config: RunConfig | None, *, seconds: float) -> Iterator[Finding]:
    """The findings of each job as it ends; a job that gets no node in time is one finding."""
    started = time.monotonic()
    running_since: dict[str, float] = {}
    visible = config.launch.visible_seconds if config else 20.0
    waiting = list(sent)
    while waiting:
        states = job_states([job.job_id for job in waiting])
        for job in list(waiting):
            state, now = states.get(job.job_id), time.monotonic()
            if job.result.exists() or state is None or not state.is_active:
                yield from _result(job, state, visible)
            elif state.state == "PENDING" and now - started > seconds:
                yield Finding("job", *_judge_waiting(state, job.partition, seconds), host=job.partition.name)
            elif state.state != "PENDING" and now - running_since.setdefault(job.job_id, now) > RUN_SECONDS:
                text = f"the checks hang on {state.nodes}: no answer within {RUN_SECONDS:.0f} s"
                yield Finding("job", "error", text, job.partition.name)
            else:
                continue
            waiting.remove(job)
        time.sleep(POLL_SECONDS if waiting else 0)


def _judge_waiting(state: JobState, partition: Partition, seconds: float) -> tuple[Level, str]:
    text = f"no node of {partition.name} became free in {seconds:.0f} s (reason: {state.reason or 'not told'})"
    if not partition.num_usable:
        states = ", ".join(f"{number} {name}" for name, number in sorted(partition.states.items()))
        return "error", f"{text}; no node there takes jobs: {states}. `sinfo --list-reasons` says why"
    return ("warning" if state.reason in BUSY else "error"), text


def _result(job: _Sent, state: JobState | None, visible_seconds: float) -> list[Finding]:
    """What a job has found; a shared file system may show it late."""
    deadline = time.monotonic() + visible_seconds
    while not job.result.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    if job.result.exists():
        outcome, found = submitit.core.utils.pickle_load(job.result)
        if outcome == "success":
            assert isinstance(found, list)
            return [Finding(each.check, each.level, each.text, f"{job.partition.name}/{each.host}") for each in found]
        return [Finding("job", "error", f"the checks failed: {_last_line(str(found))}", job.partition.name)]
    log = Path(job.handle.paths.stdout)
    said = _last_line(log.read_text(errors="replace")) if log.is_file() else "it wrote no log"
    ended = f"{state.state.lower()} on {state.nodes or 'no node'}" if state else "gone"
    return [Finding("job", "error", f"the job is {ended} without a result: {said}", job.partition.name)]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing said"])[-1]


@contextmanager
def _shared_folder(config: RunConfig | None) -> Iterator[Path]:
    """A folder that the nodes see too: in the run directory, or else where the command was given."""
    parent = Path(config.output) if config and Path(config.output).is_dir() else Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix=".wiseft-doctor-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_the_end(sent: Sequence[_Sent], seconds: float = 30.0) -> None:
    """Until no job writes into the folder that is about to go."""
    deadline = time.monotonic() + seconds
    while sent and time.monotonic() < deadline:
        if not any(state.is_active for state in job_states([job.job_id for job in sent]).values()):
            return
        time.sleep(POLL_SECONDS)
