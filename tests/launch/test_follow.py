"""Whose words explain a job that ended without its output."""

from __future__ import annotations

from wiseft_dist.launch.endings import failure_of


def event(stage, name, **values):
    return {"stage": stage, "event": name} | values


def test_the_first_rank_to_fail_knows_why():
    events = [event("finetune", "started"), event("finetune", "failed", error="a torn shard"),
              event("finetune", "failed", error="connection closed by peer")]  # fmt: skip
    assert failure_of(events, "finetune", None)["error"] == "a torn shard"


def test_a_job_that_was_started_again_is_not_blamed_for_what_was_before():
    events = [event("finetune", "failed", error="old"), event("finetune", "started")]
    assert failure_of(events, "finetune", None) is None


def test_the_failure_of_another_job_is_not_this_ones():
    events = [event("evaluate", "failed", job="2-of-2", error="x"), event("merge", "failed", error="y")]
    assert failure_of(events, "evaluate", "1-of-2") is None


def test_a_rank_that_goes_on_to_its_next_part_does_not_hide_why_another_failed():
    events = [event("evaluate", "failed", job="1-of-2", error="a torn shard"),
              event("evaluate", "started", dataset="photo", start=0, stop=4)]  # fmt: skip
    assert failure_of(events, "evaluate", "1-of-2")["error"] == "a torn shard"
