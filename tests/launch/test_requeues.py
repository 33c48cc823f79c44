"""Why a job is in the queue again, with and without accounting."""

from __future__ import annotations

import time

import pytest

from wiseft_dist.launch.requeues import MAX_ASKED, why_requeued
from wiseft_dist.slurm import JobState

WITH_ACCOUNTING = "echo AccountingStorageType = accounting_storage/slurmdbd"
WITHOUT = "echo AccountingStorageType = accounting_storage/none"
NOW = time.time()
SEEN = JobState("7", "RUNNING", nodes="node[1-2]", started=NOW - 60, time_limit_minutes=60)
LATE = JobState("7", "RUNNING", nodes="node[1-2]", started=NOW - 3500, time_limit_minutes=60)


def attempts(*states: str) -> str:
    """What sacct says of a job with these."""
    return "; ".join(f"echo '7|{state}|0:0|node[1-2]|100|200|01:00:00'" for state in states)


@pytest.mark.parametrize(
    ("states", "silent", "why"),
    [
        (["PREEMPTED", "PENDING"], "", "preempted"),
        (["NODE_FAIL", "PREEMPTED", "RUNNING"], "", "preempted"),  # the newest counts
        (["PREEMPTED"], "", "preempted"),  # the attempt after it is not on record yet
        (["NODE_FAIL", "PENDING"], "", "lost a node"),  # which answers again
        (["NODE_FAIL", "PENDING"], "node2", "lost node2"),
        (["REQUEUED", "PENDING"], "node2", "preempted or requeued"),  # by hand, or by the job itself
        (["PENDING"], "", "preempted or requeued"),
        (["PENDING"], "node2\nnode1\nnode2", "lost node1, node2"),
    ],
)
def test_accounting_tells_how_the_attempt_before_ended(program, states, silent, why):
    program("scontrol", WITH_ACCOUNTING)
    program("sacct", attempts(*states))
    program("sinfo", f"[[ \"$*\" == *--dead*--nodes=node[[]1-2]* ]] && echo '{silent}'")
    assert why_requeued([SEEN]) == [why]


def test_without_accounting_nodes_that_do_not_answer_are_named(program):
    program("scontrol", WITHOUT)
    program("sinfo", "echo node2")
    assert why_requeued([SEEN, LATE]) == ["lost node2", "lost node2"]


def test_a_job_that_had_run_as_long_as_it_may_was_at_its_limit(program):
    program("scontrol", WITHOUT)
    program("sinfo", "true")
    assert why_requeued([SEEN, LATE, JobState("7", "RUNNING")]) == [
        "preempted or requeued",
        "its time was up",
        "preempted or requeued",
    ]


def test_a_slurm_that_says_nothing_is_no_mistake(program):
    program("scontrol", "exit 1")
    program("sinfo", "exit 1")
    assert why_requeued([LATE]) == ["its time was up"]


def test_of_many_jobs_the_nodes_of_some_are_asked_for(program, tmp_path):
    program("scontrol", WITHOUT)
    program("sinfo", f"echo >> {tmp_path}/asked; echo node1")
    why = why_requeued([SEEN] * 100)
    assert why == ["lost node1"] * MAX_ASKED + ["preempted or requeued"] * (100 - MAX_ASKED)
    assert (tmp_path / "asked").read_text().count("\n") == MAX_ASKED


def test_nothing_is_asked_where_nothing_came_back(program, tmp_path):
    program("scontrol", f"touch {tmp_path}/asked")
    assert why_requeued([]) == []
    assert not (tmp_path / "asked").exists()
