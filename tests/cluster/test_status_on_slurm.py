"""What status, cancel and a second launch make of real jobs in every state."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_run import World, make_world, wiseft
from waiting import wait_until

from wiseft_dist.config import RunConfig, load_config
from wiseft_dist.data.stage import index
from wiseft_dist.launch.follow import queued_jobs
from wiseft_dist.launch.ledger import Entry, ledger_file, read_ledger, record
from wiseft_dist.launch.status import run_status
from wiseft_dist.launch.status_records import JobStatus, RunStatus
from wiseft_dist.launch.status_table import status_text
from wiseft_dist.run import Run, open_run
from wiseft_dist.slurm import active_ids, cancel_jobs, has_accounting, job_states, max_array_size
from wiseft_dist.tracking import append_event

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm

UNKNOWN_ID = "9999999"
NAMES = ("finetune", "merge", "evaluate/1-of-3", "evaluate/2-of-3", "evaluate/3-of-3", "report")


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@dataclass(frozen=True)
class Jobs:
    """A run whose jobs are shell commands, in the queue of a real Slurm."""

    cluster: Devcluster
    run: Run

    def submit(self, script: str, *options: str) -> str:
        """A job that runs a shell command; its id."""
        log = f"--output={self.run.jobs}/%j_0_log.out"
        return self.cluster.slurm("sbatch", "--parsable", log, *options, "--wrap", script).strip()

    def are(self, **ids: str) -> RunStatus:
        """What status says of the run if these are its jobs."""
        entries = [
            Entry(name.replace("__", "/").replace("_", "-"), job_id, str(self.run.jobs), "slurm", time.time() + number)
            for number, (name, job_id) in enumerate(ids.items())
        ]
        record(self.run, entries)
        return run_status(self.run)

    def wait_for(self, job_id: str, *states: str) -> None:
        wait_until(lambda: (found := job_states([job_id])) and found[job_id].state in states)


@pytest.fixture
def jobs(devcluster: Devcluster, small_world: World, tmp_path: Path) -> Jobs:
    return Jobs(devcluster, indexed_run(small_world, tmp_path / "run"))


def indexed_run(world: World, output: Path) -> Run:
    """As a launch makes it, before anything is submitted."""
    config: RunConfig = load_config(
        world.config, [f"output={output}", "launch.executor=slurm", "evaluate.job_images=20"]
    )
    run = open_run(config)
    index(config, run)
    run.jobs.mkdir()
    return run


def job(status: RunStatus, name: str) -> JobStatus:
    return next(each for stage in status.stages for each in stage.jobs if each.name == name)


def test_a_failed_a_blocked_a_held_a_running_and_a_cancelled_job_are_told_apart(jobs: Jobs) -> None:
    failed = jobs.submit("echo one; echo two; exit 3")
    jobs.wait_for(failed, "FAILED")
    blocked = jobs.submit("true", f"--dependency=afterok:{failed}")
    wait_until(lambda: job_states([blocked])[blocked].reason == "DependencyNeverSatisfied")
    array = jobs.submit("sleep 300", "--array=0-2%1")
    jobs.wait_for(f"{array}_0", "RUNNING")
    cancel_jobs([f"{array}_0"])
    jobs.wait_for(f"{array}_1", "RUNNING")
    jobs.wait_for(f"{array}_0", "CANCELLED")
    held = jobs.submit("true", "--hold")
    parts = {f"evaluate__{n + 1}_of_3": f"{array}_{n}" for n in range(3)}
    status = jobs.are(finetune=failed, merge=blocked, **parts, report=held)
    cancel_jobs([array, held, blocked])

    states = {each.name: each.state for stage in status.stages for each in stage.jobs}
    assert states == {
        "finetune": "failed",
        "merge": "blocked",
        "evaluate/1-of-3": "cancelled",
        "evaluate/2-of-3": "running",
        "evaluate/3-of-3": "waiting",
        "report": "waiting",
    }
    assert job(status, "finetune").explanation == f"finetune (job {failed}) failed (exit code 3)."
    assert job(status, "evaluate/2-of-3").nodes.startswith("127.0.0.1")
    assert job(status, "report").explanation == f"it is held: `scontrol release {held}` lets it go"
    assert status.error is not None and status.error.log_tail == ("one", "two")
    text = status_text(status)
    assert "evaluate    0 of 3 done, 1 cancelled, 1 running, 1 waiting" in text
    assert f"evaluate/1-of-3: cancelled; job {array}_0" in text
    assert max(map(len, text.splitlines())) <= max(100, len(str(jobs.run.path)) + 40)


def test_a_job_that_was_requeued_waits_again_and_counts_it(jobs: Jobs) -> None:
    requeued = jobs.submit("sleep 300", "--requeue")
    jobs.wait_for(requeued, "RUNNING")
    jobs.cluster.slurm("scontrol", "requeue", requeued)
    jobs.wait_for(requeued, "PENDING")
    finetune = job(jobs.are(finetune=requeued), "finetune")
    assert queued_jobs(jobs.run) == {"finetune": requeued}
    cancel_jobs([requeued])
    assert (finetune.state, finetune.restarts) == ("waiting", 1)
    assert finetune.explanation == "Slurm lets a job that comes back pause"


def test_a_job_that_slurm_does_not_know_is_forgotten_unless_it_left_words(jobs: Jobs) -> None:
    status = jobs.are(finetune=UNKNOWN_ID)
    assert (status.state, job(status, "finetune").state) == ("failed", "forgotten")
    assert "run again to go on" in job(status, "finetune").explanation
    assert queued_jobs(jobs.run) == {} and active_ids([UNKNOWN_ID, f"{UNKNOWN_ID}_4"]) == set()
    append_event(
        jobs.run.events_file, stage="finetune", event="failed", job=None, kind="RunError", error="a torn shard"
    )
    status = run_status(jobs.run)
    assert job(status, "finetune").state == "failed"
    assert status.error is not None and status.error.text == "a torn shard"


def test_of_an_array_that_was_cancelled_before_it_started_every_task_is(jobs: Jobs) -> None:
    array = jobs.submit("true", "--hold", "--array=0-5")
    tasks = [f"{array}_{task}" for task in range(6)]
    cancel_jobs(tasks)
    wait_until(lambda: not active_ids(tasks))
    assert {state.state for state in job_states(tasks).values()} == {"CANCELLED"}
    assert len(job_states(tasks)) == 6


def test_what_slurm_can_is_read_from_its_own_settings(jobs: Jobs) -> None:
    assert has_accounting() is False
    assert max_array_size() == 1001


def test_a_second_launch_submits_nothing_and_cancel_ends_all_of_the_first(
    devcluster: Devcluster, small_world: World, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    hold = [f"launch.{stage}.extra={{hold: ''}}" for stage in ("finetune",)]
    settings = [f"output={run.path}", "launch.executor=slurm", "evaluate.job_images=20", *hold]
    first = wiseft("run", small_world.config, *settings, "--detach")
    assert first.returncode == 0, first.stderr
    before = ledger_file(run).read_bytes()
    second = wiseft("run", run.config_file, "--detach")
    assert second.returncode == 0, second.stderr
    assert "in the queue already: finetune (" in second.stderr and "submitted" not in second.stderr
    assert ledger_file(run).read_bytes() == before
    ids = [read_ledger(run)[name].job_id for name in NAMES]
    assert len(ids) == 6 and active_ids(ids) == set(ids)
    shown = wiseft("status", run.path)
    assert "evaluate    0 of 3 done, 3 waiting (for the jobs before it)" in shown.stdout

    cancel_jobs(ids[1:2])  # so that the evaluation and the report wait in vain
    third = wiseft("run", run.config_file, "--detach")
    assert third.returncode == 0, third.stderr
    assert f"in the queue already: finetune ({ids[0]})\nmerge: submitted as " in third.stderr
    wait_until(lambda: not active_ids(ids[1:]))
    ids = [read_ledger(run)[name].job_id for name in NAMES]
    assert active_ids(ids) == set(ids) and len(set(ids)) == 6

    done = wiseft("cancel", run.path, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Cancelled: finetune (job {ids[0]}), merge (job {ids[1]}), evaluate/1-of-3")
    assert active_ids(ids) == set()
    assert run_status(run).state == "failed"
    again = wiseft("cancel", run.path, "--yes")
    assert (again.returncode, again.stdout) == (0, f"{run.path}: nothing to cancel.\n")


@pytest.mark.matrix
def test_a_job_that_ran_into_its_time_limit_is_told_to_get_more(jobs: Jobs) -> None:
    late = jobs.submit("sleep 600", "--time=1", "--no-requeue")
    jobs.wait_for(late, "TIMEOUT")
    finetune = job(jobs.are(finetune=late), "finetune")
    assert finetune.state == "timed_out"
    assert "time limit of 1 minutes" in finetune.explanation
    assert "raise launch.finetune.timeout_minutes" in finetune.explanation


@pytest.mark.matrix
def test_a_job_that_slurm_knew_once_is_forgotten_after_its_time(
    second_devcluster: Devcluster, small_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_devcluster.up("--nodes", "1", "--set", "MinJobAge=2")
    monkeypatch.setenv("SLURM_CONF", str(second_devcluster.slurm_conf))
    jobs = Jobs(second_devcluster, indexed_run(small_world, tmp_path / "run"))
    ended = jobs.submit("exit 3")
    wait_until(lambda: not active_ids([ended]))
    wait_until(lambda: job_states([ended]) == {})
    assert job(jobs.are(finetune=ended), "finetune").state == "forgotten"
