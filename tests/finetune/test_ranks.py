"""Who started this process is read from its environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_finetune import tiny_config, write_shards

from wiseft_dist.distributed import gpu_index, use_cores
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.finetune.stage import finetune
from wiseft_dist.ranks import Launcher, Ranks, discover_launcher, discover_ranks, expand_hosts, hosts_of_ranks
from wiseft_dist.run import open_run

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node7", "MASTER_PORT": "29500",
}  # fmt: skip
SUBMITIT_LOCAL = {
    "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "3", "SUBMITIT_LOCAL_GLOBALID": "2",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "99", "SLURM_JOB_NODELIST": "gpu[07-09,12]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    for name in list(os.environ):
        if name in names or name.startswith(("SLURM", "SUBMITIT", "WISEFT_CPUS", "ENVIRONMENT")):
            monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, *variables: dict[str, str]) -> None:
    for group in variables:
        for name, value in group.items():
            monkeypatch.setenv(name, value)


def test_a_plain_process_is_alone() -> None:
    ranks = discover_ranks()
    assert (ranks.rank, ranks.world_size, ranks.local_world_size, ranks.is_main) == (0, 1, 1, True)
    assert ranks.master_address == "127.0.0.1" and ranks.master_port == 0


def test_torchrun_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TORCHRUN)
    assert discover_ranks() == Ranks(5, 8, 1, 4, "node7", 29500)


def test_submitits_local_executor_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SUBMITIT_LOCAL)
    assert discover_ranks() == Ranks(2, 3, 2, 3, "127.0.0.1", 0)


def test_slurm_is_recognised_and_its_first_node_is_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM)
    assert discover_ranks() == Ranks(5, 8, 1, 4, "gpu07", 0)


def test_a_slurm_step_on_part_of_its_job_has_the_steps_first_node_as_master(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_environment(monkeypatch, SLURM, {"SLURM_STEP_NODELIST": "gpu[08-09]"})
    assert discover_ranks().master_address == "gpu08"


def test_the_ranks_of_a_start_know_each_other_and_no_earlier_start(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM)
    first = discover_launcher()
    assert (first.kind, first.attempt, first.job_id, first.restart) == ("slurm", "slurm-99.0.0", "99", 0)
    monkeypatch.setenv("SLURM_PROCID", "6")
    assert discover_launcher() == first and not first.is_submitted and not first.is_batch
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    assert discover_launcher() == replace(first, is_batch=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert discover_launcher() == Launcher("slurm", "slurm-99.1.0", "99", 1, True, True)


def test_the_tasks_of_an_array_are_jobs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM, {"SLURM_ARRAY_JOB_ID": "98", "SLURM_ARRAY_TASK_ID": "3"})
    assert discover_launcher().job_id == "98_3"


def test_slurm_has_put_as_many_ranks_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM, {"SLURM_JOB_NODELIST": "gpu[07-08]"})
    assert hosts_of_ranks(discover_ranks()) == ["gpu07"] * 4 + ["gpu08"] * 4
    monkeypatch.setenv("SLURM_DISTRIBUTION", "cyclic")
    assert hosts_of_ranks(discover_ranks()) == []


def test_a_launcher_inside_a_slurm_job_wins_over_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM, SUBMITIT_LOCAL)
    assert discover_ranks().world_size == 3
    set_environment(monkeypatch, TORCHRUN)
    assert discover_ranks().master_address == "node7"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("gpu[07-09,12]", ["gpu07", "gpu08", "gpu09", "gpu12"]),
        ("gpu[9-11]", ["gpu9", "gpu10", "gpu11"]),
        ("a[1-2]b[01-02],login", ["a1b01", "a1b02", "a2b01", "a2b02", "login"]),
        ("127.0.0.[11-12]", ["127.0.0.11", "127.0.0.12"]),
    ],
)
def test_a_host_list_is_expanded_as_slurm_does_without_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, hosts: list[str]
) -> None:
    assert expand_hosts(text) == hosts
    program = shutil.which("scontrol")
    if program is not None:  # it needs a configuration, and no cluster
        (tmp_path / "slurm.conf").write_text(
            "ClusterName=t\nSlurmctldHost=localhost\nNodeName=a\nPartitionName=p Nodes=a\n"
        )
        env = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
        answer = subprocess.run(
            [program, "show", "hostnames", text], capture_output=True, text=True, env=env, check=True
        )
        assert answer.stdout.split() == hosts


@pytest.mark.parametrize("text", ["", "gpu[a-b]", "gpu[1-]"])
def test_a_host_list_that_cannot_be_expanded_is_answered_in_a_sentence(text: str) -> None:
    with pytest.raises(RunError, match="Slurm has not said where this job runs"):
        expand_hosts(text)


def test_the_cores_of_a_local_job_are_its_own_and_not_the_surrounding_slurm_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    try:
        set_environment(monkeypatch, {"WISEFT_CPUS_PER_TASK": "3", "SLURM_CPUS_PER_TASK": "7"})
        use_cores(1)
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("WISEFT_CPUS_PER_TASK")
        use_cores(1)
        assert torch.get_num_threads() == 7
        monkeypatch.delenv("SLURM_CPUS_PER_TASK")
        use_cores(1000)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_processes_that_never_found_each_other_are_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", write_shards(tmp_path / "shards"), processes=4)
    run = open_run(config)
    with pytest.raises(RunError, match=re.escape("has 1 processes, launch.finetune plans 4")):
        finetune(config, run)
    assert not run.zero_shot.exists()


@pytest.mark.parametrize(
    ("num_visible", "local_rank", "local_world_size", "index"),
    [
        pytest.param(1, 3, 8, 0, id="one a process, isolated by Slurm"),
        pytest.param(8, 3, 8, 3, id="all of the machine's"),
        pytest.param(8, 1, 2, 1, id="more than processes"),
        pytest.param(2, 1, 2, 1, id="a part of them, by CUDA_VISIBLE_DEVICES"),
        pytest.param(1, 0, 1, 0, id="a laptop's"),
    ],
)
def test_each_process_takes_a_gpu_of_those_it_sees(
    num_visible: int, local_rank: int, local_world_size: int, index: int
) -> None:
    assert gpu_index(num_visible, local_rank, local_world_size) == index


def test_fewer_gpus_than_processes_are_refused() -> None:
    with pytest.raises(UserError, match=r"8 processes on a machine with 4 GPUs: set tasks_per_node and gpus_per_node"):
        gpu_index(4, 0, 8)
