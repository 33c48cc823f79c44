"""Real sweeps on this machine: what is refused before anything is written, failing runs, the table, the soup."""

from __future__ import annotations

import csv
import fcntl
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import World, wiseft

from wiseft_dist.errors import UserError
from wiseft_dist.launch.sweep.directory import read_sweep
from wiseft_dist.launch.sweep.plan import Asked, Plan, describe, plan_sweep
from wiseft_dist.pipeline import remaining
from wiseft_dist.run import Run
from wiseft_dist.weights.finetuned import is_finetuned, open_finetuned
from wiseft_dist.weights.sources import open_weights

TWO = ("finetune.optimizer.lr=0.003,0.001",)


def test_the_documentation_names_every_option():
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    options = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", wiseft("sweep", "--help", COLUMNS="200").stdout))
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", text)) == options - {"--help"}


def test_a_plan_writes_nothing_and_needs_no_slurm(world, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    described = describe(planned(world, tmp_path / "sweep", *TWO, "launch.executor=slurm", at_once=1))
    assert [run["missing"] for run in described["runs"]] == [["finetune", "merge", "evaluate/1-of-1", "report"]] * 2
    assert [(array["job"], array["tasks"], array["at_once"], array["ranks"]) for array in described["arrays"]] == [
        ("finetune", 2, 1, 2),
        ("merge", 2, 1, 1),
        ("evaluate/1-of-1", 2, 1, 1),
        ("report", 2, 1, 1),
    ]
    assert content(tmp_path) == []


def planned(world: World, folder: Path, *settings: str, **options: object) -> Plan:
    return plan_sweep(Asked(world.config, settings, folder, **options))  # type: ignore[arg-type]


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def place(finished: Run, sweep: Path, name: str, lr: str) -> None:
    """A finished run as if this sweep had made it."""
    shutil.copytree(finished.path, sweep / name)
    file = sweep / name / "config.yaml"
    text = file.read_text().replace(str(finished.path), str(sweep / name))
    file.write_text(text.replace("lr: 0.003", f"lr: {lr}"))


def theta_1(run: Run) -> dict[str, torch.Tensor]:
    with open_finetuned(run.load_config(), run) as weights:
        return {name: weights.tensor(name) for name in weights}


def test_runs_on_the_same_data_share_what_was_read(world, tmp_path):
    first, second = planned(world, tmp_path / "sweep", *TWO).planned
    assert first.manifests is second.manifests
    assert [first.run.path.name, second.run.path.name] == ["lr=0.003", "lr=0.001"]
    assert content(tmp_path) == []


def test_runs_that_hold_out_other_samples_do_not_share(world, tmp_path):
    first, second = planned(world, tmp_path / "sweep", "data.id_val_fraction=0.3,0.2").planned
    assert [each.sizes["id_val"] for each in (first, second)] == [12, 8]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["finetune.optimizer.lr=1e-3,-1"], "finetune.optimizer.lr"),
        (["finetune.optimizer.lr=1e-3,0.001"], "occurs twice"),
        (["finetune.optimzer.lr=1e-3,1e-4"], "Did you mean finetune.optimizer"),
        (["finetune.global_batch_size=8,9"], "global_batch_size=9: .* 9"),
        (["evaluate.job_images=10,1000"], "would be evaluated by"),
        (["data.classnames=/nowhere/a,/nowhere/b"], "nowhere"),
        (["output=elsewhere", "seed=1,2"], "both name the sweep's folder"),
    ],
)
def test_a_mistake_in_any_run_is_said_before_anything_is_written(world, tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        planned(world, tmp_path / "sweep", *settings)
    assert content(tmp_path) == []


def test_a_folder_of_something_else_is_refused(world, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files and has no sweep\.json"):
        planned(world, tmp_path, *TWO)


def test_values_join_a_sweep_but_do_not_leave_it(world, tmp_path):
    planned(world, tmp_path, *TWO).sweep.write()
    assert [m.name for m in read_sweep(tmp_path).members] == ["lr=0.003", "lr=0.001"]
    more = planned(world, tmp_path, "finetune.optimizer.lr=0.001,0.01,0.003").sweep
    assert [member.name for member in more.members] == ["lr=0.001", "lr=0.01", "lr=0.003"]
    with pytest.raises(UserError, match=r"already has lr=0.001, which .* ask for .*lr=0.001 too"):
        planned(world, tmp_path, "finetune.optimizer.lr=0.003,0.01")
    with pytest.raises(UserError, match=r"a sweep over finetune\.optimizer\.lr, not over seed"):
        planned(world, tmp_path, "seed=1,2")


def test_models_of_different_starts_have_no_soup(world, tmp_path):
    plan = planned(world, tmp_path / "a", "seed=1,2")  # this theta_0 is drawn from the seed
    assert plan.sweep.soup == "none"
    assert "do not start from the same weights" in plan.warnings[-1]
    with pytest.raises(UserError, match="--soup greedy: runs of different seed have no soup"):
        planned(world, tmp_path / "a", "seed=1,2", soup="greedy")
    assert "was trained on" in planned(world, tmp_path / "a", "data.id_val_fraction=0.3,0.2").warnings[-1]
    assert "one fine-tuned model" in planned(world, tmp_path / "a", "merge.method=wise,slerp").warnings[-1]


def test_two_sweeps_at_a_time_are_one_too_many(world, tmp_path):
    (tmp_path / "jobs").mkdir()
    with (tmp_path / "jobs" / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = wiseft("sweep", world.config, *TWO, "--output", tmp_path)
    assert done.returncode == 2
    assert "another `wiseft sweep` is at work on this sweep; nothing was started" in done.stderr
    assert content(tmp_path) == ["jobs", "jobs/lock"]


def test_a_failing_run_stops_neither_the_others_nor_the_soup_of_those_that_are_finished(finished, world, tmp_path):
    place(finished.run, tmp_path, "lr=0.003", "0.003")
    place(finished.run, tmp_path, "lr=0.001", "0.001")  # as trained as the other: only the soup is left to do
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "keys": ["finetune.optimizer.lr"],
                "members": [
                    {"name": "lr=0.003", "settings": {"finetune.optimizer.lr": 0.003}},
                    {"name": "lr=0.001", "settings": {"finetune.optimizer.lr": 0.001}},
                ],
                "soup": "uniform",
                "soup_of_finished": False,
            }
        )
    )
    assert planned(world, tmp_path, *TWO).sweep.soup == "uniform"
    grid = ("finetune.optimizer.lr=1e30,0.003,0.001", "finetune.max_bad_steps=0")
    done = wiseft("sweep", world.config, *grid, "--output", tmp_path, "--soup-of-finished")
    assert done.returncode == 1
    assert "1 of 4 runs have no result: lr=1e+30." in done.stderr
    assert "lr=1e+30: failed. finetune" in done.stdout and "finite" in done.stdout
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "sweep.csv").open())}
    assert {name: row["state"] for name, row in rows.items()} == {
        "lr=0.003": "finished", "lr=0.001": "finished", "lr=1e+30": "failed", "soup": "finished",
    }  # fmt: skip
    assert f"Comparison: {tmp_path / 'comparison.html'}\n" in done.stderr
    page = (tmp_path / "comparison.html").read_text()
    assert "Left out, because they have no result: lr=1e+30." in page
    assert all(f'<th scope="row"><bdi>{name}</bdi></th>' in page for name in ("lr=0.003", "lr=0.001", "soup"))
    assert sum(int(row["is_best"]) for row in rows.values()) == 1
    soup = Run(tmp_path / "soup")
    assert is_finetuned(soup.load_config(), soup) and remaining(soup.load_config(), soup) == []
    trained = theta_1(Run(tmp_path / "lr=0.003"))
    with open_weights(soup.ensemble(1.0)) as merged:
        assert all(torch.equal(merged.tensor(name), value) for name, value in trained.items())  # theta_1 with itself
    printed = wiseft("status", tmp_path, "--json")
    assert json.loads(printed.stdout)["best"] == next(name for name, row in rows.items() if row["is_best"] == "1")


@pytest.mark.matrix
def test_two_runs_and_their_greedy_soup_and_a_third_that_joins(world, tmp_path):
    small = ("launch.finetune.tasks_per_node=1", "merge.alphas=[0,0.5,1]")
    done = wiseft("sweep", world.config, *TWO, *small, "--output", tmp_path, "--soup", "greedy", "--at-once", "2")
    assert done.returncode == 0, done.stderr
    soup = Run(tmp_path / "soup")
    assert len(json.loads(soup.soup_file.read_text())["models"]) == 2
    before = (tmp_path / "lr=0.003" / "merge" / "alpha_1.00" / "COMMITTED.json").stat().st_mtime_ns
    three = "finetune.optimizer.lr=0.003,0.001,0.002"
    done = wiseft("sweep", world.config, three, *small, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lr=0.003: done" not in done.stderr and "lr=0.002: done" in done.stderr
    assert (tmp_path / "lr=0.003" / "merge" / "alpha_1.00" / "COMMITTED.json").stat().st_mtime_ns == before
    assert len(json.loads(soup.soup_file.read_text())["models"]) == 3
    assert remaining(soup.load_config(), soup) == []
    table = wiseft("sweep", "--table", tmp_path).stdout
    assert max(map(len, table.splitlines()[:9])) <= 100
    assert "the shifts choose neither a run nor an alpha" in table
