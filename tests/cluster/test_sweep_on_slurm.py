"""Sweeps on a real Slurm: what is submitted, and what becomes of it when a run fails."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_run import World, wiseft
from waiting import wait_until

from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.pipeline import remaining
from wiseft_dist.run import Run
from wiseft_dist.slurm import active_ids

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm

SLURM = ("launch.executor=slurm", "launch.finetune.tasks_per_node=1", "merge.alphas=[0,0.5,1]")
LATER = "launch.finetune.extra={begin: now+1hour}"
"""Nothing starts: what was submitted can be looked at."""


def field(devcluster: Devcluster, job: str, name: str) -> str:
    """A field of what `scontrol show job` says, without what is not fulfilled yet."""
    shown = devcluster.slurm("scontrol", "show", "job", job)
    found = re.search(rf"\b{name}=(\S+)", shown)
    assert found is not None, shown
    return found[1].removesuffix("(unfulfilled)")


def ids(run: Run) -> dict[str, str]:
    return {name: entry.job_id for name, entry in read_ledger(run).items()}


def test_a_sweep_is_one_array_a_stage_chained_task_by_task(
    devcluster: Devcluster, world: World, tmp_path: Path
) -> None:
    sweep = ("sweep", world.config, *SLURM, "evaluate.job_images=30", "finetune.epochs=1,2", "--output", tmp_path)
    done = wiseft(*sweep, "finetune.optimizer.lr=0.003,0.001", LATER, "--at-once", "2", "--detach")
    assert done.returncode == 0, done.stderr
    names = ["epochs=1,lr=0.003", "epochs=1,lr=0.001", "epochs=2,lr=0.003", "epochs=2,lr=0.001"]
    runs = [Run(tmp_path / name) for name in names]
    try:
        array = {name: job_id.split("_")[0] for name, job_id in ids(runs[0]).items()}
        assert list(array) == ["finetune", "merge", "evaluate/1-of-2", "evaluate/2-of-2", "report"]
        for number, run in enumerate(runs):
            assert ids(run) == {name: f"{job_id}_{number}" for name, job_id in array.items()}
        dependencies = {name: field(devcluster, f"{job_id}_3", "Dependency") for name, job_id in array.items()}
        evaluations = [array["evaluate/1-of-2"], array["evaluate/2-of-2"]]
        after = dependencies.pop("report").replace("(unfulfilled)", "")
        assert sorted(after.split(",")) == [f"aftercorr:{job_id}_*" for job_id in sorted(evaluations, key=int)]
        assert dependencies == {
            "finetune": "(null)",
            "merge": f"aftercorr:{array['finetune']}_*",
            "evaluate/1-of-2": f"aftercorr:{array['merge']}_*",
            "evaluate/2-of-2": f"aftercorr:{array['merge']}_*",
        }
        for job_id in array.values():
            assert field(devcluster, job_id, "ArrayTaskThrottle") == "2"
        soup = ids(Run(tmp_path / "soup"))
        assert field(devcluster, soup["merge"], "Dependency") == f"afterok:{array['finetune']}_*"
        assert field(devcluster, soup["report"], "Dependency").startswith("afterok:")
        again = wiseft(*sweep, "finetune.optimizer.lr=0.003,0.001", LATER, "--detach")
        assert again.returncode == 0, again.stderr
        assert "in the queue already" in again.stderr and "submitted" not in again.stderr
        assert [ids(run) for run in runs] == [
            {name: f"{job_id}_{number}" for name, job_id in array.items()} for number in range(4)
        ]
    finally:
        end(devcluster, [*runs, Run(tmp_path / "soup")])


@pytest.mark.matrix
def test_a_failing_run_ends_its_own_chain_and_no_other(devcluster: Devcluster, world: World, tmp_path: Path) -> None:
    sweep = ("sweep", world.config, *SLURM, "finetune.max_bad_steps=0", "--output", tmp_path)
    done = wiseft(*sweep, "finetune.optimizer.lr=0.003,0.001,0.002,1e30", "--at-once", "3")
    assert done.returncode == 1
    assert "lr=1e+30: failed. finetune" in done.stdout
    states = {row["run"]: row["state"] for row in csv.DictReader((tmp_path / "sweep.csv").open())}
    assert states == {
        "lr=0.003": "finished", "lr=0.001": "finished", "lr=0.002": "finished", "lr=1e+30": "failed", "soup": "blocked",
    }  # fmt: skip
    assert not active_ids([job_id for name in states for job_id in ids(Run(tmp_path / name)).values()])
    done = wiseft(*sweep, "finetune.optimizer.lr=0.003,0.001,0.002,1e30", "--soup-of-finished")
    assert done.returncode == 1
    soup = Run(tmp_path / "soup")
    assert remaining(soup.load_config(), soup) == []
    assert len(soup.load_config().merge.models) == 2  # beside the first run's own


@pytest.mark.matrix
def test_runs_that_are_further_along_have_arrays_of_their_own(
    devcluster: Devcluster, world: World, tmp_path: Path
) -> None:
    first = wiseft("sweep", world.config, *SLURM, "finetune.epochs=1,2", "--output", tmp_path, "--soup", "none")
    assert first.returncode == 0, first.stdout + first.stderr
    for file in (tmp_path / "epochs=2" / "report").iterdir():
        file.unlink()
    grid = "finetune.epochs=1,2,3"
    done = wiseft("sweep", world.config, *SLURM, grid, "--output", tmp_path, "--soup", "uniform")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"report: epochs=2 submitted as \d+\n", done.stderr)
    assert re.search(r"finetune: epochs=3 submitted as \d+\n", done.stderr)
    soup = Run(tmp_path / "soup")
    wait_until(lambda: remaining(soup.load_config(), soup) == [], every=0.5)


def end(devcluster: Devcluster, runs: list[Run]) -> None:
    """Take everything out of the queue that a test has left there."""
    left = {job_id.split("_")[0] for run in runs for job_id in ids(run).values()}
    devcluster.slurm("scancel", "--quiet", *left)
    wait_until(lambda: not active_ids([job_id for run in runs for job_id in ids(run).values()]))
