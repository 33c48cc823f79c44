"""What is wrong on a node is found before fine-tuning starts on it, and the node is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import serve

from wiseft_dist.config import PreflightConfig, RunConfig
from wiseft_dist.distributed import process_group
from wiseft_dist.errors import RunError
from wiseft_dist.findings import Finding
from wiseft_dist.launch.job import check_allocation
from wiseft_dist.network_checks import Pair, judge_network, neighbours
from wiseft_dist.node_checks import (
    Gpu,
    Visible,
    check_clock,
    check_disk,
    check_gpus,
    check_store,
    judge_clock,
    judge_gpu_memory,
    judge_gpus,
    parse_gpus,
)
from wiseft_dist.preflight import (
    Look,
    Survey,
    error_sentence,
    judge,
    judge_binding,
    judge_clocks,
    judge_code,
    preflight,
)
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events

PATIENCE_SECONDS = 120
H100 = Gpu("GPU-1", "NVIDIA H100 80GB HBM3", "550.54.15", 81559.0, 81008.0)
LOOK = Look(0, "gpu01", True, 1000.0, "abc", {"torch": "2.7.1"}, "GPU-1")


def config_of(folder: Path, **settings: Any) -> RunConfig:
    resources = {"nodes": 4}
    return RunConfig.model_validate(
        {
            "output": str(folder),
            "model": {"architecture": "ViT-B-16"},
            "data": {"train": str(folder)},
            "launch": {"preflight": settings, "finetune": resources},
        }
    )


def on_nodes(folder: Path, names: Sequence[str], config: RunConfig) -> list[str]:
    """A preflight of one rank on each of some nodes, which are all this machine; what each rank raised."""
    context = multiprocessing.get_context("fork")
    arguments = [(folder, names, rank, config) for rank in range(len(names))]
    ranks = [context.Process(target=_on_node, args=each) for each in arguments]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(PATIENCE_SECONDS)
            assert rank.exitcode == 0
    finally:
        for rank in ranks:
            if rank.pid is not None and rank.is_alive():
                os.kill(rank.pid, signal.SIGKILL)
    return [(folder / f"said-{rank}").read_text() for rank in range(len(names))]


def _on_node(folder: Path, names: Sequence[str], rank: int, config: RunConfig) -> None:
    torch.set_num_threads(1)  # a pool of threads that the parent has started is not there after a fork
    for name in list(os.environ):
        if name.startswith(("SLURM", "SUBMITIT", "MASTER_")) or name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]
    os.environ.update(
        SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID="1", SUBMITIT_LOCAL_NTASKS=str(len(names)),
        SUBMITIT_LOCAL_GLOBALID=str(rank), SLURMD_NODENAME=names[rank],
    )  # fmt: skip
    said = ""
    try:
        with process_group(discover_ranks(), timeout_minutes=1, folder=folder, on_host=True) as ranks:
            try:
                preflight(config, Run(folder), replace(ranks, local_rank=0, local_world_size=1))
            except RunError as error:
                said = str(error)
    finally:
        (folder / f"said-{rank}").write_text(said)
    os._exit(0)


def test_four_nodes_are_looked_at_and_the_network_between_neighbours_is_measured(tmp_path: Path) -> None:
    names = ["n1", "n2", "n3", "n4"]
    assert on_nodes(tmp_path, names, config_of(tmp_path, min_free_disk_gb=0)) == [""] * 4
    [told] = read_events(Run(tmp_path))
    assert (told["event"], told["nodes"], told["errors"]) == ("preflight", names, [])
    assert [(pair["first"], pair["second"]) for pair in told["pairs"]] == [
        ("n1", "n2"),
        ("n3", "n4"),
        ("n2", "n3"),
        ("n4", "n1"),
    ]
    assert all(pair["rate"] > 0.001 for pair in told["pairs"])
    assert told["all_reduce_gigabytes_per_second"] > 0.001


def test_every_rank_hears_of_every_bad_node(tmp_path: Path) -> None:
    said = on_nodes(tmp_path, ["n1", "n2"], config_of(tmp_path, min_free_disk_gb=10**9))
    assert said[0] == said[1]
    assert said[0].startswith("not every node is fit to fine-tune. n1, n2: ")
    assert f"GB are free in the run directory, {tmp_path}, less than launch.preflight.min_free_disk_gb=" in said[0]
    assert 'with launch.finetune `extra: {exclude: "n1,n2"}`, then `wiseft run` again.' in said[0]
    [told] = read_events(Run(tmp_path))
    assert len(told["errors"]) == 4 and told["errors"][0].startswith("n1: ")


def test_ranks_with_another_library_or_code_are_named() -> None:
    other = replace(LOOK, rank=9, host="gpu02", code="abd", versions={"torch": "2.6.0"})
    assert [(finding.host, finding.text) for finding in judge_code([LOOK, replace(LOOK, rank=1), other])] == [
        ("gpu02", "rank 9 runs another wiseft_dist than rank 0"),
        ("gpu02", "rank 9 has torch 2.6.0, and rank 0 2.7.1"),
    ]


def test_two_ranks_on_one_gpu_are_named() -> None:
    looks = [LOOK, replace(LOOK, rank=1, gpu="GPU-2"), replace(LOOK, rank=2), replace(LOOK, rank=3, gpu="")]
    assert judge_binding([*looks, replace(LOOK, rank=4, gpu="")]) == [
        Finding("gpu", "error", "rank 2 has the same GPU as rank 0, GPU-1", "gpu01")
    ]


def test_a_node_whose_clock_is_wrong_is_named_once() -> None:
    late = replace(LOOK, rank=8, host="gpu02", seconds=955.0)
    [found] = judge_clocks([LOOK, late, replace(late, rank=9, is_leader=False), replace(LOOK, seconds=1029)], 30)
    limit = "launch.preflight.max_clock_difference_seconds=30"
    assert found == Finding("clock", "error", f"the clock is 45 s behind rank 0's, more than {limit}", "gpu02")


def test_a_node_that_is_slow_to_all_its_neighbours_is_called_slow_and_they_are_not() -> None:
    pairs = [Pair("a", "b", 20.0), Pair("c", "d", 2.0), Pair("b", "c", 2.1), Pair("d", "a", 19.0)]
    found = {finding.host: (finding.level, finding.text) for finding in judge_network(pairs, None)}
    assert found["c"] == ("warning", "the network to its neighbours reaches 2.1 GB/s, and usual here are 19")
    assert [found[name][0] for name in "abd"] == ["ok"] * 3
    levels = {finding.host: finding.level for finding in judge_network(pairs, 5.0)}
    assert levels == {"a": "ok", "b": "ok", "c": "error", "d": "ok"}
    assert judge_network([Pair("a", "b", 0.0)], None)[0].level == "error"
    assert judge_network([], 5.0) == []


@pytest.mark.parametrize(
    ("num_nodes", "rounds"),
    [
        (1, []),
        (2, [[(0, 1)]]),
        (3, [[(0, 1)], [(1, 2)]]),
        (4, [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]),
        (5, [[(0, 1), (2, 3)], [(1, 2), (3, 4)]]),
    ],
)
def test_every_node_measures_with_a_neighbour_and_never_with_two_at_once(
    num_nodes: int, rounds: list[list[tuple[int, int]]]
) -> None:
    assert neighbours(num_nodes) == rounds


def test_findings_of_several_nodes_are_one_phrase() -> None:
    looks = [replace(LOOK, gpu="", findings=(Finding("disk", "error", "is full", host),), host=host) for host in "abc"]
    errors = [finding for finding in judge(Survey(looks), PreflightConfig()) if finding.level == "error"]
    assert error_sentence(errors) == (
        "not every node is fit to fine-tune. a, b, c: is full. Mend this, or leave bad nodes out with launch.finetune "
        '`extra: {exclude: "a,b,c"}`, then `wiseft run` again.'
    )


def test_what_nvidia_smi_prints_is_read() -> None:
    text = (
        "GPU-1, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 81008\n"
        "GPU-2, NVIDIA H100 80GB HBM3, 550.54.15, 81559, [Unknown Error]\n\n"
    )
    assert parse_gpus(text) == [H100, replace(H100, uuid="GPU-2", free_mib=0.0)]


@pytest.mark.parametrize(
    ("count", "wanted", "is_isolated", "tasks", "chosen", "level", "text"),
    [
        (8, 8, False, 8, None, "ok", "8 GPUs visible, NVIDIA H100 80GB HBM3, driver 550.54.15"),
        (1, 8, True, 8, "3", "ok", "1 GPUs visible (CUDA_VISIBLE_DEVICES=3), NVIDIA"),
        (1, 8, False, 8, None, "ok", "1 GPUs visible"),
        (8, 8, True, 8, None, "warning", "8 GPUs are visible, though gpu_isolation says one a process"),
        (2, 8, False, 8, "0,1", "error", "2 GPUs (CUDA_VISIBLE_DEVICES=0,1) for 8 processes; gpus_per_node is 8"),
        (4, 8, False, 4, "0,1,2,3", "warning", "4 GPUs are visible (CUDA_VISIBLE_DEVICES=0,1,2,3), and gpus_per_node"),
        (0, 8, False, 8, "", "error", "PyTorch sees no GPU (CUDA_VISIBLE_DEVICES=) of 8 that nvidia-smi lists, driver"),
    ],
)
def test_the_gpus_that_a_process_sees_are_held_against_the_plan(
    count: int, wanted: int, is_isolated: bool, tasks: int, chosen: str | None, level: str, text: str
) -> None:
    [found] = judge_gpus(
        [H100] * 8, Visible(count), wanted, is_isolated=is_isolated, local_world_size=tasks, chosen=chosen
    )
    assert found[0] == level and found[1].startswith(text)


def test_a_gpu_that_another_program_uses_is_no_good() -> None:
    assert judge_gpu_memory("0", 81000, 81559, 0.8) == ("ok", "GPU 0 has 79.1 of 79.6 GiB free")
    level, text = judge_gpu_memory("0", 12000, 81559, 0.8)
    assert level == "error" and text.startswith("GPU 0 has 11.7 of 79.6 GiB free, less than launch.preflight.min_free_")


def test_a_plan_without_gpus_asks_for_none_and_one_with_gpus_for_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_gpus(0, is_isolated=False, local_world_size=1, min_free=0.8) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    [found] = check_gpus(8, is_isolated=False, local_world_size=8, min_free=0.8)
    assert (found.level, found.text) == ("error", "there is no nvidia-smi, so no driver; gpus_per_node is 8")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle for GPU3: Unknown Error'\nexit 6\n")
    program.chmod(0o755)
    [found] = check_gpus(8, is_isolated=False, local_world_size=8, min_free=0.8)
    assert found.text.startswith("nvidia-smi fails: Unable to determine the device handle for GPU3: Unknown Error")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with (place / "everything").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"." * 4096)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_is_an_error_even_where_nothing_needs_to_be_free(full_disk: Path) -> None:
    [found] = check_disk({"data cache": full_disk}, 0.0)
    assert (found.level, found.text) == (
        "error",
        f"cannot write to the data cache, {full_disk}: No space left on device",
    )


def test_room_is_looked_for_where_a_folder_will_be(tmp_path: Path) -> None:
    [found] = check_disk({"data cache": tmp_path / "not" / "yet"}, 0.0)
    assert found.level == "ok" and list(tmp_path.iterdir()) == []


def test_a_store_that_is_away_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WISEFT_STORE_TRIES", "1")
    (tmp_path / "a.tar").write_bytes(b"12345")
    with serve(tmp_path) as url:
        shard = f"{url}/a.tar"
        [found] = check_store([shard])
        assert found.level == "ok" and found.text.startswith(f"the first byte of {shard} came after ")
    shard = shard.replace("127.0.0.1", "localhost")  # where no connection stands from before
    [found] = check_store([shard])
    assert found.level == "error" and found.text.startswith("a shard cannot be read: ") and shard in found.text


def test_the_clock_of_the_file_system_is_looked_at(tmp_path: Path) -> None:
    [found] = check_clock(tmp_path)
    assert found.level == "ok"
    assert judge_clock(0.2)[0] == "ok"
    assert judge_clock(-61) == ("warning", "the clock and that of the run directory's file system differ by 61 s")


@pytest.mark.parametrize(
    ("tasks", "by_node", "says"),
    [
        ("4", "1(x4)", None),
        ("4", "2(x2)", "4 processes on 2 nodes (2, 2), and launch.finetune plans 4 on 4 nodes (1 each)"),
        ("4", "2,1(x2)", "4 processes on 3 nodes (2, 1, 1), and launch.finetune plans 4 on 4 nodes (1 each)"),
        ("2", "1(x2)", "2 processes on 2 nodes (1, 1), and launch.finetune plans 4 on 4 nodes (1 each)"),
    ],
)
def test_a_job_of_another_shape_than_the_plan_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: str, by_node: str, says: str | None
) -> None:
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n1\n")
    (tmp_path / "scontrol").chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SUBMITIT_EXECUTOR": "slurm", "SLURM_PROCID": "0",
        "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "5", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n1",
        "SLURM_NNODES": "2", "SLURM_NTASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": by_node,
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if says is None:
        check_allocation("finetune", config_of(tmp_path))
    else:
        with pytest.raises(RunError) as caught:
            check_allocation("finetune", config_of(tmp_path))
        assert says in str(caught.value)
