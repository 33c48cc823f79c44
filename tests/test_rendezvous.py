"""Ranks meet through a file of their run, several jobs at once on one machine, and nobody takes a stale one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from wiseft_dist.distributed import process_group
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.rendezvous import missing_ranks_sentence

PATIENCE_SECONDS = 120


def start(folder: Path, job: str, rank: int, world_size: int, limit_seconds: float = 60) -> BaseProcess:
    """A rank as submitit's local executor starts it, which says in a file whom it has met, or why not."""
    process = multiprocessing.get_context("fork").Process(
        target=_meet, args=(folder, job, rank, world_size, limit_seconds)
    )
    process.start()
    return process


def _meet(folder: Path, job: str, rank: int, world_size: int, limit_seconds: float) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM", "SUBMITIT", "MASTER_")) or name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]
    os.environ.update(
        SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID=job, SUBMITIT_LOCAL_NTASKS=str(world_size),
        SUBMITIT_LOCAL_GLOBALID=str(rank),
    )  # fmt: skip
    said: dict[str, object] = {}
    started = time.monotonic()
    try:
        with process_group(
            discover_ranks(), timeout_minutes=2, folder=folder, on_host=True, meeting_minutes=limit_seconds / 60
        ) as ranks:
            met = [""] * world_size
            dist.all_gather_object(met, f"{job}/{rank}")
            said = {"met": met, "port": ranks.master_port, "exported": os.environ["MASTER_PORT"]}
        said["left"] = "MASTER_PORT" in os.environ
    except Exception as error:  # the test looks at it
        said = {"error": str(error), "kind": type(error).__name__, "seconds": time.monotonic() - started}
        traceback.print_exc()
    (folder / f"said-{job}-{rank}").write_text(json.dumps(said))
    os._exit(0)


def finish(folder: Path, ranks: list[BaseProcess]) -> dict[str, dict[str, object]]:
    """What each of them says, by job and rank."""
    try:
        for rank in ranks:
            rank.join(PATIENCE_SECONDS)
            assert rank.exitcode == 0
    finally:
        for rank in ranks:
            if rank.pid is not None and rank.is_alive():
                os.kill(rank.pid, signal.SIGKILL)
    return {file.name.removeprefix("said-"): json.loads(file.read_text()) for file in folder.glob("said-*")}


def test_three_jobs_at_once_on_one_machine_meet_each_their_own(tmp_path: Path) -> None:
    jobs = ("71", "72", "73")
    said = finish(tmp_path, [start(tmp_path, job, rank, 2) for rank in (1, 0) for job in jobs])
    for job in jobs:
        for rank in (0, 1):
            assert said[f"{job}-{rank}"]["met"] == [f"{job}/0", f"{job}/1"]
            assert said[f"{job}-{rank}"]["exported"] == str(said[f"{job}-0"]["port"])
            assert said[f"{job}-{rank}"]["left"] is False
    assert len({said[f"{job}-0"]["port"] for job in jobs}) == 3
    assert not list(tmp_path.glob(".meeting*"))


@pytest.mark.parametrize("is_another_store", [False, True], ids=["nobody listens there", "another job's store does"])
def test_the_file_of_an_earlier_time_is_never_taken(tmp_path: Path, is_another_store: bool) -> None:
    other = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other.set("token", "another one")
    early = start(tmp_path, "81", 1, 2)
    host = os.uname().nodename
    stale = {"address": "127.0.0.1", "port": other.port if is_another_store else 1, "token": "an old one"}
    (tmp_path / f".meeting-local-{host}-81-0.json").write_text(json.dumps(stale))
    time.sleep(1)
    said = finish(tmp_path, [early, start(tmp_path, "81", 0, 2)])
    assert said["81-0"]["met"] == said["81-1"]["met"] == ["81/0", "81/1"]
    assert said["81-1"]["port"] not in (other.port, 1)


def test_a_rank_that_does_not_come_is_named_to_all_within_the_limit(tmp_path: Path) -> None:
    said = finish(tmp_path, [start(tmp_path, "91", rank, 4, limit_seconds=5) for rank in (0, 2)])
    for rank in (0, 2):
        assert said[f"91-{rank}"]["kind"] == "RunError"
        assert "2 of 4 ranks have not come within 5 s: ranks 1, 3. See their logs." in str(said[f"91-{rank}"]["error"])
    assert not list(tmp_path.glob(".meeting*"))


def test_a_first_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    said = finish(tmp_path, [start(tmp_path, "92", 1, 2, limit_seconds=1)])
    assert "has not met rank 0, on 127.0.0.1, within 1 s (its file has not shown up)" in str(said["92-1"]["error"])


def test_missing_ranks_are_named_with_their_nodes() -> None:
    hosts = [f"gpu{node:02}" for node in range(1, 5) for _ in range(8)]
    sentence = missing_ranks_sentence([3, *range(8, 16), 24, 26], hosts, 32, 600)
    assert sentence == (
        "11 of 32 ranks have not come within 600 s: rank 3 on gpu01, ranks 8-15 on gpu02, ranks 24, 26 on gpu04. "
        "See their logs, and leave a broken node out with `extra: {exclude: NODE}`."
    )


def test_a_thousand_missing_ranks_make_a_sentence_of_a_few_lines() -> None:
    hosts = [f"gpu{node:03}" for node in range(128) for _ in range(8)]
    assert "ranks 56-63 on gpu007 and 120 more nodes." in missing_ranks_sentence(range(1024), hosts, 1024, 600)
