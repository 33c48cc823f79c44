"""Which arrays a sweep becomes on Slurm, and how many runs share a machine."""

from __future__ import annotations

import pytest

from wiseft_dist.config import LaunchConfig, Resources
from wiseft_dist.launch.sweep.arrays import Array, make_arrays
from wiseft_dist.launch.sweep.local import slots

ALL = (("finetune", None), ("merge", None), ("evaluate", "1-of-2"), ("evaluate", "2-of-2"), ("report", None))
EVALUATION = ALL[2:]


def test_a_stage_is_an_array_over_all_runs_after_those_of_the_stage_before():
    assert make_arrays({"a": ALL, "b": ALL, "c": ALL}, longest=1001, at_once=2) == [
        Array("finetune", None, ("a", "b", "c"), (), 2),
        Array("merge", None, ("a", "b", "c"), (0,), 2),
        Array("evaluate", "1-of-2", ("a", "b", "c"), (1,), 2),
        Array("evaluate", "2-of-2", ("a", "b", "c"), (1,), 2),
        Array("report", None, ("a", "b", "c"), (2, 3), 2),
    ]


def test_runs_that_lack_other_things_make_chains_of_their_own_which_share_the_cap():
    arrays = make_arrays({"a": ALL, "b": EVALUATION, "c": ALL, "d": (), "e": ALL}, longest=1001, at_once=4)
    assert [(array.name, array.runs, array.after, array.at_once) for array in arrays] == [
        ("finetune", ("a", "c", "e"), (), 3),
        ("merge", ("a", "c", "e"), (0,), 3),
        ("evaluate/1-of-2", ("a", "c", "e"), (1,), 3),
        ("evaluate/2-of-2", ("a", "c", "e"), (1,), 3),
        ("report", ("a", "c", "e"), (2, 3), 3),
        ("evaluate/1-of-2", ("b",), (), 1),
        ("evaluate/2-of-2", ("b",), (), 1),
        ("report", ("b",), (5, 6), 1),
    ]


def test_no_array_is_longer_than_slurm_takes():
    arrays = make_arrays(dict.fromkeys("abcde", (("finetune", None), ("merge", None))), longest=2, at_once=64)
    assert [(array.stage, array.runs, array.after) for array in arrays] == [
        ("finetune", ("a", "b"), ()),
        ("merge", ("a", "b"), (0,)),
        ("finetune", ("c", "d"), ()),
        ("merge", ("c", "d"), (2,)),
        ("finetune", ("e",), ()),
        ("merge", ("e",), (4,)),
    ]


def test_where_slurm_has_no_arrays_every_job_is_one_by_itself():
    arrays = make_arrays(dict.fromkeys("ab", (("finetune", None), ("merge", None))), longest=0, at_once=64)
    assert [(array.stage, array.runs, array.after) for array in arrays] == [
        ("finetune", ("a",), ()), ("merge", ("a",), (0,)), ("finetune", ("b",), ()), ("merge", ("b",), (2,)),
    ]  # fmt: skip


def test_nothing_is_submitted_of_finished_runs():
    assert make_arrays({"a": (), "b": ()}, longest=10, at_once=1) == []


@pytest.mark.parametrize(
    ("finetune", "at_once", "expected"),
    [
        (Resources(), None, 1),  # one process takes all cores
        (Resources(), 4, 4),
        (Resources(tasks_per_node=4), 4, 2),
        (Resources(gpus_per_node=1), 4, 1),
        (Resources(tasks_per_node=64), 4, 1),
    ],
)
def test_as_many_runs_share_a_machine_as_are_allowed_and_fit(finetune, at_once, expected):
    assert slots(LaunchConfig(finetune=finetune), num_cores=8, at_once=at_once) == expected


def test_runs_that_say_how_many_cores_they_take_fill_the_machine():
    two = Resources(cpus_per_task=2)
    assert slots(LaunchConfig(finetune=two, merge=two, evaluate=two), num_cores=8, at_once=None) == 4
