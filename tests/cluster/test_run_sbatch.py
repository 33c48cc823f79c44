"""A whole run in one allocation with plain sbatch, and stages by hand inside an allocation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from slurm_jobs import field, start_now, state
from tiny_run import World, make_world
from waiting import wait_until

from wiseft_dist.commits import read_commit, sha256_file
from wiseft_dist.run import Run, newest_checkpoint
from wiseft_dist.tracking import read_events

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "slurm" / "run.sbatch"
PATIENCE_SECONDS = 400
LONG = (
    "finetune.epochs=100",
    "finetune.log_every=1",
    "finetune.checkpoint.every_minutes=null",
    "data.workers=1",
)
STOPPED_AT = 10


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WISEFT_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def undisturbed(devcluster: Devcluster, small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WISEFT_PYTHON", sys.executable)
        job = submit(devcluster, run, small_world.config, *LONG)
    wait_until(lambda: state(devcluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds=PATIENCE_SECONDS)
    assert state(devcluster, job) == "COMPLETED", log(run)
    return run


def submit(cluster: Devcluster, run: Run, *arguments: object) -> str:
    """Hand the script to sbatch on two nodes; the job's id."""
    options = ["--parsable", "--nodes=2", f"--output={run.path.with_suffix('.log')}"]
    return cluster.slurm("sbatch", *options, str(SCRIPT), *map(str, arguments), f"output={run.path}").strip()


def test_a_whole_run_in_one_allocation(devcluster: Devcluster, small_world: World, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    job = submit(devcluster, run, small_world.config)
    wait_until(lambda: state(devcluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds=PATIENCE_SECONDS)
    assert state(devcluster, job) == "COMPLETED", log(run)
    assert run.results_file.is_file() and (run.report / "index.html").is_file()
    assert read_commit(run.finished_checkpoint())["world_size"] == 2
    assert run.load_config().launch.finetune.nodes == 2


def test_a_mistake_ends_the_job_with_its_sentence(devcluster: Devcluster, small_world: World, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    job = submit(devcluster, run, small_world.config, "finetune.epoch=1")
    wait_until(lambda: state(devcluster, job) == "FAILED", seconds=PATIENCE_SECONDS)
    assert "finetune.epoch is not a setting. Did you mean finetune.epochs?" in log(run)
    assert not run.path.exists()


def warned_of_the_time_limit(cluster: Devcluster, job: str) -> None:
    cluster.slurm("scancel", "--signal=USR2", "--batch", job)


def in_the_grace_time_of_a_preemption(cluster: Devcluster, job: str) -> None:
    cluster.slurm("scontrol", "update", "partitionname=low", "GraceTime=30")
    cluster.slurm("srun", "--partition=high", "--nodes=2", "--exclusive", "true")


@pytest.mark.matrix
@pytest.mark.parametrize("disturb", [warned_of_the_time_limit, in_the_grace_time_of_a_preemption])
def test_a_job_that_must_go_saves_comes_back_and_ends_with_the_same_weights(
    second_devcluster: Devcluster,
    small_world: World,
    undisturbed: Run,
    tmp_path: Path,
    disturb: Callable[[Any, str], None],
) -> None:
    cluster, run = second_devcluster, Run(tmp_path / "run")
    cluster.up("--nodes", "2", "--preempt")
    job = submit(cluster, run, small_world.config, *LONG)
    wait_until(lambda: num_steps(run) >= STOPPED_AT, every=0.05, seconds=PATIENCE_SECONDS)
    disturb(cluster, job)
    wait_until(lambda: is_back(cluster, job), seconds=PATIENCE_SECONDS)
    wait_until(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds=PATIENCE_SECONDS)
    assert state(cluster, job) == "COMPLETED", log(run)
    first, second = (e["step"] for e in read_events(run) if e["event"] == "started" and e["stage"] == "finetune")
    assert first == 0 and second >= STOPPED_AT
    assert field(cluster, job, "Restarts") == "1"
    assert weights(run) == weights(undisturbed)


@pytest.mark.matrix
def test_a_cancelled_job_saves_and_stays_away(devcluster: Devcluster, small_world: World, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    job = submit(devcluster, run, small_world.config, *LONG)
    wait_until(lambda: num_steps(run) >= STOPPED_AT, every=0.05, seconds=PATIENCE_SECONDS)
    devcluster.slurm("scancel", job)
    wait_until(lambda: state(devcluster, job) == "CANCELLED", seconds=PATIENCE_SECONDS)
    assert field(devcluster, job, "Restarts") == "0"
    newest = newest_checkpoint(run)
    assert newest is not None and read_commit(newest)["step"] >= STOPPED_AT and not read_commit(newest)["final"]
    assert [event["event"] for event in read_events(run) if event["stage"] == "finetune"].count("started") == 1


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["-n", "2", sys.executable], marks=pytest.mark.matrix, id="srun"),
        pytest.param(
            ["-n", "1", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
            marks=pytest.mark.matrix,
            id="torchrun",
        ),
    ],
)
def test_a_stage_runs_by_hand_inside_an_allocation(
    devcluster: Devcluster, small_world: World, tmp_path: Path, launcher: list[str]
) -> None:
    command = [sys.executable, "-m", "wiseft_dist", "run", "--prepare", str(small_world.config)]
    prepared = subprocess.run([*command, f"output={tmp_path / 'run'}"], capture_output=True, text=True, timeout=120)
    assert prepared.stdout == f"{tmp_path / 'run'}\n", prepared.stderr
    wrapped = " ".join(["srun", *launcher, "-m", "wiseft_dist", "finetune", str(tmp_path / "run")])
    output = f"--output={tmp_path / 'run.log'}"
    job = devcluster.slurm("sbatch", "--parsable", "-n", "2", "-N", "1", output, "--wrap", wrapped).strip()
    wait_until(lambda: state(devcluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds=PATIENCE_SECONDS)
    run = Run(tmp_path / "run")
    assert read_commit(run.finished_checkpoint())["world_size"] == 2


def weights(run: Run) -> str:
    """What fine-tuning ended with."""
    return sha256_file(run.ensemble(1.0) / "open_clip_model.safetensors")


def num_steps(run: Run) -> int:
    return sum("loss" in event for event in read_events(run))


def is_back(cluster: Devcluster, job: str) -> bool:
    """Let a requeued job start now; whether it has been requeued."""
    start_now(cluster, job)
    return field(cluster, job, "Restarts") == "1" and state(cluster, job) != "PENDING"


def log(run: Run) -> str:
    return run.path.with_suffix(".log").read_text()
