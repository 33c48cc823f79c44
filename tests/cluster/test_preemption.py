"""A job that Slurm requeues or ends saves its training first, and comes back only where it should.

tests/faults has the preemption by another job, and shows in continuous integration that `scancel` loses nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from slurm_jobs import field, start_now, state
from tiny_run import World, make_world
from waiting import wait_until

from wiseft_dist.commits import read_commit
from wiseft_dist.config import load_config
from wiseft_dist.launch.executors import SlurmExecutor
from wiseft_dist.pipeline import Job
from wiseft_dist.run import Run, committed_checkpoints, open_run
from wiseft_dist.tracking import read_events

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.matrix]

SETTINGS = (
    "finetune.epochs=100",
    "finetune.log_every=1",
    "finetune.checkpoint.every_minutes=null",
    "launch.executor=slurm",
    "data.id_val_fraction=0",
    "data.workers=1",
)
STOPPED_AT = 10


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(devcluster: Devcluster, small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run, _ = submit(small_world, tmp_path_factory.mktemp("undisturbed") / "run")
    wait_until(lambda: run.final_checkpoint() is not None)
    return run


def submit(world: World, output: Path, *settings: str) -> tuple[Run, str]:
    """A new run whose fine-tuning is in the queue, and the job's id."""
    config = load_config(world.config, [*SETTINGS, f"output={output}", *settings])
    run = open_run(config)
    run.jobs.mkdir()
    [submitted] = SlurmExecutor(run).submit([Job("finetune", None, config.launch.finetune)], after=[])
    return run, submitted.job_id


def under_way(world: World, output: Path, *settings: str) -> tuple[Run, str]:
    run, job = submit(world, output, *settings)
    wait_until(lambda: len(losses(run)) >= STOPPED_AT, every=0.02)
    return run, job


def to_the_job(cluster: Devcluster, job: str) -> None:
    cluster.slurm("scancel", "--signal=USR2", job)


def to_the_second_rank(cluster: Devcluster, job: str) -> None:
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("SLURM_JOB_ID") == job and environment.get("SLURM_PROCID") == "1":
                os.kill(process.pid, signal.SIGUSR2)
                return
        except psutil.Error:
            continue
    pytest.fail(f"job {job} has no second rank")


def by_requeuing(cluster: Devcluster, job: str) -> None:
    cluster.slurm("scontrol", "requeue", job)


@pytest.mark.parametrize("preempt", [to_the_second_rank, to_the_job, by_requeuing])
def test_a_preempted_job_saves_comes_back_and_does_no_step_twice(
    devcluster: Devcluster,
    small_world: World,
    undisturbed: Run,
    tmp_path: Path,
    preempt: Callable[[Any, str], None],
) -> None:
    run, job = under_way(small_world, tmp_path / "run")
    preempt(devcluster, job)
    wait_until(lambda: starts_again(devcluster, job) and run.final_checkpoint() is not None)
    first, second = (event["step"] for event in read_events(run) if event["event"] == "started")
    assert first == 0 and second >= STOPPED_AT
    steps = [event["step"] for event in read_events(run) if event["event"] == "metrics"]
    assert steps == sorted(set(steps))
    assert losses(run) == losses(undisturbed)
    assert second in [event["step"] for event in read_events(run) if event["event"] == "saved"]


def test_a_cancelled_job_saves_and_stays_away(devcluster: Devcluster, small_world: World, tmp_path: Path) -> None:
    run, job = under_way(small_world, tmp_path / "run")
    devcluster.slurm("scancel", job)
    wait_until(lambda: state(devcluster, job) == "CANCELLED")
    [checkpoint] = committed_checkpoints(run)
    assert STOPPED_AT <= read_commit(checkpoint)["step"] < max(losses(run)) + 2
    assert [event["event"] for event in read_events(run)].count("started") == 1


APPTAINER = """#!/bin/sh
# As apptainer runs `exec --bind MOUNTS IMAGE COMMAND ...` in an image that has none of Slurm's commands.
echo "$@" >> {told}
shift 4
PATH={empty} exec "$@"
"""


def test_a_job_whose_container_has_no_slurm_commands_comes_back_too(
    devcluster: Devcluster, small_world: World, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, told = tmp_path / "bin", tmp_path / "told"
    programs.mkdir()
    (programs / "apptainer").write_text(APPTAINER.format(told=told, empty=tmp_path / "empty"))
    (programs / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    container = f"{{container: wiseft.sif, container_runtime: apptainer, container_python: {sys.executable}}}"
    run, job = under_way(small_world, tmp_path / "run", f"launch.all={container}")
    devcluster.slurm("scancel", "--signal=USR2", job)
    wait_until(lambda: starts_again(devcluster, job) and run.final_checkpoint() is not None)
    first, second = (event["step"] for event in read_events(run) if event["event"] == "started")
    assert first == 0 and second >= STOPPED_AT
    assert losses(run) == losses(undisturbed)
    assert f"{run.path}:{run.path}" in told.read_text()
    assert list(run.path.glob(".requeue*")) == []


def losses(run: Run) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(run) if event["event"] == "metrics"}


def starts_again(cluster: Devcluster, job: str) -> bool:
    """Let a requeued job start now; whether it has been requeued."""
    start_now(cluster, job)
    return field(cluster, job, "Restarts") == "1"
