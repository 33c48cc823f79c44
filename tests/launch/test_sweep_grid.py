"""From `KEY=VALUE,VALUE` to runs and their names."""

from __future__ import annotations

import pytest

from wiseft_dist.errors import UserError
from wiseft_dist.launch.sweep.grid import parse_grid, refuse_what_makes_no_runs, split_values
from wiseft_dist.launch.sweep.names import run_names, short_keys, value_text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-5,3e-5", ["1e-5", "3e-5"]),
        ("[0,0.5,1]", ["[0,0.5,1]"]),
        ("[a,b],[c,d]", ["[a,b]", "[c,d]"]),
        ("{a: [1,2], b: 3},{a: 4}", ["{a: [1,2], b: 3}", "{a: 4}"]),
        ('"a,b", c', ['"a,b"', "c"]),
        ("['x,y',z],w", ["['x,y',z]", "w"]),
        ("it's,5", ["it's", "5"]),
        ("a{0..3}.tar,b{0..3}.tar", ["a{0..3}.tar", "b{0..3}.tar"]),
        ("null,2", ["null", "2"]),
    ],
)
def test_values_are_cut_at_the_commas_outside_brackets_and_quotes(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["[1,2", "1],2", "'a,b", "[1,2}"])
def test_brackets_and_quotes_are_closed(text):
    with pytest.raises(ValueError, match=r"is missing at the end|closes nothing"):
        split_values(text)


def test_every_combination_is_a_run_and_single_values_are_for_all():
    grid = parse_grid(["seed=1,2", "merge.alphas=[0,0.5,1]", "finetune.epochs=5,10"])
    assert grid.num_runs == 4
    assert grid.keys == ("seed", "finetune.epochs")
    assert list(grid.combinations()) == [
        ["merge.alphas=[0,0.5,1]", "seed=1", "finetune.epochs=5"],
        ["merge.alphas=[0,0.5,1]", "seed=1", "finetune.epochs=10"],
        ["merge.alphas=[0,0.5,1]", "seed=2", "finetune.epochs=5"],
        ["merge.alphas=[0,0.5,1]", "seed=2", "finetune.epochs=10"],
    ]


def test_a_grid_can_be_put_in_the_order_of_an_earlier_one():
    assert parse_grid(["seed=1,2", "finetune.epochs=5,10"]).in_order_of(["finetune.epochs", "seed"]).keys == (
        "finetune.epochs",
        "seed",
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["seed"], "not of the form KEY=VALUE"),
        (["seed=1,2,1"], "1 occurs twice"),
        (["seed=1,,2"], "value 2 of 3 is empty"),
        (["seed=1,"], "value 2 of 2 is empty"),
        (["seed=1,2", "seed=3"], "seed is given twice"),
        (["seed=1,2", "seed=3,4"], "seed is given twice"),
        (["seed=1"], "`wiseft run` does a single run"),
        (["seed=[1,2"], "is missing at the end"),
    ],
)
def test_what_is_no_grid_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        parse_grid(settings)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("launch.executor=local,slurm", "all runs of a sweep are launched alike"),
        ("output=a,b", "one folder, with a folder for each run in it"),
        ("wandb.project=a,b", "decides neither"),
        ("data.cache=a,b", "decides neither"),
        ("data.shifts={a: x},{b: y}", "decides neither"),
        ("finetune.micro_batch_size=1,2", "decides neither"),
        ("finetune.checkpoint={keep_last: 1},{keep_last: 2}", "decides neither"),
        ("data={train: a},{train: b}", "sweep over data.train"),
    ],
)
def test_runs_differ_in_what_decides_their_results(setting, said):
    with pytest.raises(UserError, match=said):
        refuse_what_makes_no_runs(parse_grid([setting]))


@pytest.mark.parametrize(
    "key",
    ["seed", "model.pretrained", "finetune.optimizer.lr", "data.augment.mixup", "merge.method", "evaluate.precision"],
)
def test_what_decides_weights_or_their_evaluation_can_be_swept(key):
    refuse_what_makes_no_runs(parse_grid([f"{key}=1,2"]))


def test_keys_are_as_short_as_they_can_be_told_apart():
    assert short_keys(["finetune.epochs", "finetune.head.epochs", "seed"]) == {
        "finetune.epochs": "finetune.epochs",
        "finetune.head.epochs": "head.epochs",
        "seed": "seed",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "1e-05"),
        (5.0, "5"),
        (0.1 + 0.2, "0.30000000000000004"),
        (True, "true"),
        (None, "null"),
        ([0, 1], "[0,1]"),
    ],
)
def test_values_are_written_as_people_read_them(value, text):
    assert value_text(value) == text


def test_a_run_is_named_by_its_values_alone():
    keys = ["finetune.optimizer.lr", "finetune.epochs"]
    assert run_names(keys, [[1e-05, 5.0], [3e-05, 10.0]]) == ["lr=1e-05,epochs=5", "lr=3e-05,epochs=10"]
    assert run_names(keys, [[3e-05, 10.0]]) == ["lr=3e-05,epochs=10"]


def test_names_that_no_file_can_have_and_long_ones_are_told_apart_by_a_hash():
    spaced, slashed, long, longer = run_names(["data.classnames"], [["a b"], ["a/b"], ["x" * 300], ["x" * 301]])
    assert spaced.startswith("classnames=a_b-") and slashed.startswith("classnames=a_b-")
    assert len({spaced, slashed, long, longer}) == 4
    assert all(len(name) <= 120 and "/" not in name for name in (spaced, slashed, long, longer))
