"""Merges that are killed: the next attempt finishes them, to the same bytes and without doing anything twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUM_KILLS = int(os.environ.get("WISEFT_MERGE_KILLS", "8"))


def merges(what: str, folder: Path, number: int = 0) -> list[dict[str, Any]]:
    """What `merge_processes.py` says."""
    program = [sys.executable, str(Path(__file__).with_name("merge_processes.py")), what, str(folder), str(number)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_at_random_moments_a_merge_ends_in_the_same_files_and_computes_no_chunk_twice(tmp_path: Path):
    attempts = merges("kills", tmp_path, NUM_KILLS)
    print(*(json.dumps(attempt) for attempt in attempts), sep="\n")
    assert sum(attempt["was_killed"] for attempt in attempts) == NUM_KILLS
    assert all(attempt["is_same"] for attempt in attempts)
    assert [each for each in attempts if each["most_often"] > 1] == []
    finished = [attempt for attempt in attempts if not attempt["was_killed"]]
    assert finished and all(attempt["is_whole"] and attempt["is_committed"] for attempt in finished)
    assert [each for each in finished if each["report"]["kept"] != each["finished_before"]] == []


@pytest.mark.parametrize("renamed", [0, 1, 3])
def test_killed_between_two_commits_a_merge_has_only_the_other_ensembles_left_to_name(tmp_path: Path, renamed: int):
    (done,) = merges("renames", tmp_path, renamed)
    assert done["was_killed"] and done["missing"] == [0.0, 0.25, 0.5, 1.0][renamed:]
    assert done["kept"] == done["chunks"] and done["is_same"]


def test_two_ranks_write_what_one_process_writes(tmp_path: Path):
    (done,) = merges("ranks", tmp_path)
    assert done["is_same"] and done["reports"] == [{"chunks": 99, "kept": 0}] * 2


def test_a_rank_that_is_killed_is_reported_by_the_other_and_its_share_is_done_next_time(tmp_path: Path):
    (done,) = merges("lost_rank", tmp_path)
    other, dead = done["reports"]
    assert dead == {"died": True} and "another rank is gone. Run again; finished chunks are kept." in other["error"]
    assert done["named"] == [] and 0 < done["finished"] < done["chunks"]
    assert done["kept"] == done["finished"] and done["is_same"]
