"""Whose words explain a job that ended without its output."""

from __future__ import annotations

from wiseft_dist.config import Resources
from wiseft_dist.launch.follow import _failure
from wiseft_dist.pipeline import Job

EVALUATE = Job("evaluate", "photo", Resources())
FINETUNE = Job("finetune", None, Resources())


def event(stage, name, **values):
    return {"stage": stage, "event": name} | values


def test_the_first_rank_to_fail_knows_why():
    events = [event("finetune", "started"), event("finetune", "failed", error="a torn shard"),
              event("finetune", "failed", error="connection closed by peer")]  # fmt: skip
    assert _failure(events, FINETUNE)["error"] == "a torn shard"


def test_a_job_that_was_started_again_is_not_blamed_for_what_was_before():
    events = [event("finetune", "failed", error="old"), event("finetune", "started")]
    assert _failure(events, FINETUNE) is None


def test_the_failure_of_another_dataset_is_not_this_ones():
    events = [event("evaluate", "failed", dataset="sketch", error="x"), event("merge", "failed", error="y")]
    assert _failure(events, EVALUATE) is None
