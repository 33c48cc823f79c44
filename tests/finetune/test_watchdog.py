"""A rank that stalls ends the job, and is named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_finetune import start_ranks

from wiseft_dist.finetune.watchdog import Beat, accuse

MINUTES = 0.2
PATIENCE_SECONDS = 120
PROGRAM = Path(__file__).with_name("watched_rank.py")


@contextmanager
def ranks_under_way(folder: Path, processes: int, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    ranks = start_ranks([sys.executable, str(PROGRAM), str(folder), str(MINUTES), *map(str, arguments)], processes)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(list(folder.glob("rank_*"))) < processes:
            assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()


def failures(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.matrix), 1])
def test_a_rank_that_gives_no_sign_of_life_ends_the_others_and_is_named(tmp_path: Path, stopped: int) -> None:
    with ranks_under_way(tmp_path, 2) as ranks:
        ranks[stopped].send_signal(signal.SIGSTOP)
        other = ranks[1 - stopped]
        _, error = other.communicate(timeout=PATIENCE_SECONDS)
        assert other.returncode == 1
    sentence = f"wiseft: rank {1 - stopped}: no progress for 0.2 minutes (distributed.timeout_minutes): rank {stopped}"
    assert sentence in error
    [failure] = failures(tmp_path)
    assert failure["stalled"] == [stopped] and failure["event"] == "failed" and failure["kind"] == "RunError"


def test_a_rank_that_waits_for_data_is_named_by_all(tmp_path: Path) -> None:
    with ranks_under_way(tmp_path, 3, 1) as ranks:
        errors = [rank.communicate(timeout=PATIENCE_SECONDS)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [1, 1, 1]
    assert any("step 5, data) holds the others up" in error for error in errors)
    assert failures(tmp_path)[0]["stalled"] == [1]


@pytest.mark.matrix
def test_a_process_alone_is_watched_too(tmp_path: Path) -> None:
    with ranks_under_way(tmp_path, 1, 0) as [rank]:
        _, error = rank.communicate(timeout=PATIENCE_SECONDS)
        assert rank.returncode == 1 and "step 5, data) does not get on" in error


@pytest.mark.matrix
def test_a_job_that_was_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    with ranks_under_way(tmp_path, 2) as ranks:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                rank.send_signal(number)
            time.sleep(60 * MINUTES + 3)
        step = int((tmp_path / "rank_1").read_text())
        time.sleep(1)
        assert [rank.poll() for rank in ranks] == [None, None]
        assert int((tmp_path / "rank_1").read_text()) > step
    assert not (tmp_path / "events.jsonl").exists()


def test_who_is_behind_is_accused_before_who_is_not() -> None:
    beats = {0: Beat("a", 7, "computing"), 1: Beat("b", 6, "saving"), 2: Beat("c", 7, "data")}
    assert accuse(beats) == ([1], "rank 1 (b, step 6, saving) holds the others up")
    assert accuse(beats | {1: Beat("b", 7, "computing")})[0] == [2]
    assert accuse(beats | {0: None})[0] == [0]


def test_nobody_is_accused_where_all_do_the_same() -> None:
    stalled, reason = accuse({rank: Beat("a", 7, "computing") for rank in range(4)})
    assert stalled == [] and reason == "all 4 ranks are at step 7 (computing), and none gets on"


def test_a_thousand_missing_ranks_make_a_sentence_of_one_line() -> None:
    _, reason = accuse(dict.fromkeys(range(1, 1000)) | {0: Beat("a", 7, "computing")})
    assert reason.endswith("rank 8 and 991 more: gives no sign of life")
