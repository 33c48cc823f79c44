"""What reaches a job on a real Slurm: the code as it was, the GPUs it should see, everything it has to wait for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_run import World
from waiting import wait_until

from wiseft_dist.config import Resources, load_config
from wiseft_dist.findings import Finding, only
from wiseft_dist.launch.executors import SlurmExecutor, Submitted, slurm_executor
from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.launch.site_checks import site_findings
from wiseft_dist.launch.snapshot import snapshot
from wiseft_dist.pipeline import Job
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm

PATIENCE_SECONDS = 180


@pytest.fixture
def gpu_cluster(second_devcluster: Devcluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Devcluster]:
    """One node of two GPUs on which an array has at most four tasks."""
    second_devcluster.up("--nodes", "1", "--gpus", "2", "--set", "MaxArraySize=4")
    monkeypatch.setenv("SLURM_CONF", str(second_devcluster.slurm_conf))
    yield second_devcluster


@pytest.fixture
def new_run(world: World, tmp_path: Path) -> Run:
    """A run directory in which nothing has happened yet."""
    return open_run(load_config(world.config, [f"output={tmp_path / 'run'}"]))


def test_a_waiting_job_runs_the_code_as_it_was_when_it_was_submitted(
    devcluster: Devcluster, copied: Run, tmp_path: Path
) -> None:
    package = snapshot(tmp_path / "checkout")  # a copy that may be edited
    shutil.rmtree(copied.report)
    environment = os.environ | {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}
    settings = ["launch.executor=slurm", "launch.report.extra={begin: now+1hour}", f"output={copied.path}"]
    command = [sys.executable, "-m", "wiseft_dist", "run", str(copied.config_file), *settings, "--detach"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    entry = read_ledger(copied)["report"]
    (package / "wiseft_dist" / "report" / "stage.py").write_text("raise RuntimeError('edited')\n")
    devcluster.slurm("scontrol", "update", f"jobid={entry.job_id}", "StartTime=now")
    wait_until(lambda: job_field(devcluster, entry.job_id, "JobState") in ("COMPLETED", "FAILED"))
    log = Path(entry.folder, f"{entry.job_id}_0_log.out").read_text()
    assert copied.results_file.is_file(), log
    attempts = [event for event in read_events(copied) if event["event"] == "attempt" and event["stage"] == "report"]
    assert attempts[-1]["code"] == package.name
    assert (copied.jobs / "code" / package.name).is_dir()


def test_a_process_sees_its_own_gpu_or_all_of_the_node(gpu_cluster: Devcluster, tmp_path: Path) -> None:
    def visible() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def seen_with(resources: Resources, name: str) -> list[str]:
        results: list[str] = slurm_executor(tmp_path / name, name, resources).submit(visible).results()
        return results

    both = Resources(tasks_per_node=2, gpus_per_node=2, timeout_minutes=5)
    assert sorted(seen_with(both.model_copy(update={"gpu_isolation": True}), "own")) == ["0", "1"]
    assert seen_with(both, "all") == ["0,1", "0,1"]


def test_an_array_longer_than_slurm_allows_is_cut_and_all_of_it_is_waited_for(
    gpu_cluster: Devcluster, new_run: Run
) -> None:
    held = Resources(extra={"hold": True}, max_parallel=2, timeout_minutes=5)
    executor = SlurmExecutor(new_run)
    tasks = executor.submit([Job("evaluate", f"{number}-of-6", held) for number in range(1, 7)], after=[])
    [last] = executor.submit([Job("report", None, held)], after=tasks)
    first, second = sorted({task.job_id.split("_")[0] for task in tasks}, key=int)
    assert [task.job_id for task in tasks] == [f"{first}_{n}" for n in range(4)] + [f"{second}_{n}" for n in range(2)]
    waits_for = job_field(gpu_cluster, last.job_id, "Dependency")
    assert f"afterok:{first}_*" in waits_for and f"afterok:{second}_*" in waits_for
    caps = [job_field(gpu_cluster, job_id, "ArrayTaskThrottle") for job_id in (first, second)]
    assert caps == ["1", "1"]  # together at most the two that max_parallel allows
    assert job_field(gpu_cluster, last.job_id, "Requeue") == "1"
    ledger = read_ledger(new_run)
    assert {name: ledger[name].job_id for name in ("evaluate/6-of-6", "report")} == {
        "evaluate/6-of-6": f"{second}_1",
        "report": last.job_id,
    }
    cancel(gpu_cluster, [*tasks, last])


def test_a_plan_knows_what_slurm_would_refuse(gpu_cluster: Devcluster) -> None:
    stages = {
        "finetune": Resources(partition="gpu"),
        "merge": Resources(nodes=2),
        "evaluate": Resources(gpus_per_node=3),
        "report": Resources(timeout_minutes=60, partition="dev"),
    }
    assert texts(site_findings(stages)) == [
        "launch.finetune.partition is 'gpu', which Slurm does not have: there are dev.",
        "launch.merge.nodes is 2, and partition dev has 1.",
        "launch.evaluate.gpus_per_node is 3, and no node of dev has more than 2.",
    ]
    gpu_cluster.slurm("scontrol", "update", "PartitionName=dev", "MaxTime=30", "State=DOWN")
    [too_long, is_down] = texts(site_findings({"report": stages["report"]}))
    assert "launch.report.timeout_minutes is 60, and partition dev allows 30" in too_long
    assert is_down == "launch.report: partition dev is DOWN: it starts no jobs."


def test_a_plan_knows_what_slurm_would_find_out_only_when_a_jobs_turn_comes(gpu_cluster: Devcluster) -> None:
    def errors(resources: Resources) -> list[str]:
        return texts(only(site_findings({"evaluate": resources}), "error"))

    assert errors(Resources(tasks_per_node=2, mem_gb=0.5)) == []
    assert errors(Resources(tasks_per_node=2, cpus_per_task=40)) == [
        "launch.evaluate.cpus_per_task is 40 for 2 processes a node, and no node of dev has more than 2 CPUs."
    ]
    [too_much] = errors(Resources(mem_gb=1e6))
    assert too_much.startswith("launch.evaluate.mem_gb is 1e+06, and no node of dev has more than ")
    assert errors(Resources(constraint="a100|h100")) == [
        "launch.evaluate.constraint names a100, h100, and no node of dev has that."
    ]


def test_a_plan_asks_sbatch_itself_about_what_only_slurm_knows(gpu_cluster: Devcluster) -> None:
    def said(**settings: Any) -> list[tuple[str, str]]:
        found = site_findings({"report": Resources(**settings)})
        return [(finding.level, finding.text) for finding in found]

    assert said(qos="none", extra={"nice": 10}, gpus_per_node=2, tasks_per_node=2, gpu_isolation=True) == []
    misspelt = said(extra={"reservatoin": "x"})
    assert misspelt == [("error", "launch.report: sbatch says: unrecognized option '--reservatoin=x'.")]
    no_licence = said(extra={"licenses": "matlab"})
    assert no_licence == [("error", "launch.report: sbatch says: Invalid license specification.")]
    nobody = said(extra={"nodelist": "nobody"})
    assert nobody == [("error", "launch.report: sbatch says: Invalid node name specified.")]
    assert gpu_cluster.slurm("squeue", "--noheader") == ""
    gpu_cluster.slurm("scontrol", "update", "NodeName=ALL", "State=DRAIN", "Reason=test")
    assert said() == []  # a job may wait for that
    gpu_cluster.slurm("scontrol", "update", "NodeName=ALL", "State=RESUME")


def test_a_plan_says_that_srun_here_starts_no_containers(gpu_cluster: Devcluster) -> None:
    pyxis, apptainer = Resources(container="x.sqsh"), Resources(container="x.sif", container_runtime="apptainer")
    [said] = texts(site_findings({"finetune": pyxis, "merge": apptainer}))
    assert said.startswith("launch.finetune.container_runtime is pyxis, and srun here knows no --container-image")
    assert site_findings({"merge": apptainer}) == []


def texts(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings]


def cancel(cluster: Devcluster, submitted: list[Submitted]) -> None:
    cluster.slurm("scancel", *{item.job_id.split("_")[0] for item in submitted})


def job_field(cluster: Devcluster, job: str, name: str) -> str:
    """One field of `scontrol show job`; of an array the first line's."""
    lines = cluster.slurm("scontrol", "--oneliner", "show", "job", job).splitlines()
    return dict(pair.split("=", 1) for pair in lines[0].split() if "=" in pair)[name]
