"""Who started this process is read from its environment."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_finetune import tiny_config, write_shards

from wiseft_dist.distributed import Ranks, discover_ranks, use_cores
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.stage import finetune
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
        if name in names or name.startswith(("SLURM", "SUBMITIT", "WISEFT_CPUS")):
            monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, *variables: dict[str, str]) -> None:
    for group in variables:
        for name, value in group.items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's own program, which needs no cluster for this; a stand-in where Slurm is not installed."""
    if shutil.which("scontrol"):
        settings = "ClusterName=test\nSlurmctldHost=localhost\nNodeName=gpu[01-20]\nPartitionName=all Nodes=ALL\n"
        (tmp_path / "slurm.conf").write_text(settings)
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    else:
        program = tmp_path / "scontrol"
        program.write_text('#!/bin/sh\n[ "$3" = "gpu[07-09,12]" ] && echo gpu07 || echo gpu08\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_plain_process_is_alone() -> None:
    ranks = discover_ranks()
    assert (ranks.rank, ranks.world_size, ranks.local_world_size, ranks.is_main) == (0, 1, 1, True)
    assert ranks.master_address == "127.0.0.1" and 20_000 <= ranks.master_port <= 32_000


def test_torchrun_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TORCHRUN)
    assert discover_ranks() == Ranks(5, 8, 1, 4, "node7", 29500)


def test_submitits_local_executor_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SUBMITIT_LOCAL)
    ranks = discover_ranks()
    assert ranks == Ranks(2, 3, 2, 3, "127.0.0.1", ranks.master_port)
    monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", "0")
    assert discover_ranks().master_port == ranks.master_port
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "4712")
    assert discover_ranks().master_port != ranks.master_port


def test_slurm_is_recognised_and_its_first_node_is_the_master(monkeypatch: pytest.MonkeyPatch, scontrol: None) -> None:
    set_environment(monkeypatch, SLURM)
    ranks = discover_ranks()
    assert ranks == Ranks(5, 8, 1, 4, "gpu07", ranks.master_port)


def test_a_slurm_step_on_part_of_its_job_has_the_steps_first_node_as_master(
    monkeypatch: pytest.MonkeyPatch, scontrol: None
) -> None:
    set_environment(monkeypatch, SLURM, {"SLURM_STEP_NODELIST": "gpu[08-09]"})
    assert discover_ranks().master_address == "gpu08"


def test_a_requeued_slurm_job_gets_another_port(monkeypatch: pytest.MonkeyPatch, scontrol: None) -> None:
    set_environment(monkeypatch, SLURM)
    first = discover_ranks().master_port
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert discover_ranks().master_port != first


def test_a_launcher_inside_a_slurm_job_wins_over_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM, SUBMITIT_LOCAL)
    assert discover_ranks().world_size == 3
    set_environment(monkeypatch, TORCHRUN)
    assert discover_ranks().master_address == "node7"


def test_a_host_list_that_cannot_be_expanded_is_answered_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, SLURM, {"PATH": str(tmp_path)})
    with pytest.raises(RunError, match=r"`scontrol show hostnames gpu\[07-09,12\]` cannot be run"):
        discover_ranks()


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


@pytest.mark.parametrize(("planned", "found"), [(4, {}), (1, TORCHRUN)])
def test_processes_that_never_found_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: int, found: dict[str, str]
) -> None:
    config = tiny_config(tmp_path / "run", write_shards(tmp_path / "shards"), processes=planned)
    run = open_run(config)
    set_environment(monkeypatch, found)
    number = found.get("WORLD_SIZE", "1")
    with pytest.raises(RunError, match=re.escape(f"has {number} processes, launch.finetune plans {planned}")):
        finetune(config, run)
    assert not run.zero_shot.exists()
