"""What a sweep asks Slurm before it hands anything over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import World

from wiseft_dist.errors import UserError
from wiseft_dist.launch.sweep.plan import Asked, describe, plan_sweep
from wiseft_dist.launch.sweep.start import start

GRID = ("finetune.optimizer.lr=0.003,0.001", "launch.executor=slurm")


@pytest.fixture
def program(program: Callable[[str, str], None], tmp_path: Path) -> Callable[[str, str], None]:
    """At first there is a cluster with nothing to do."""
    program("scontrol", "echo 'PartitionName=dev Default=YES MaxTime=UNLIMITED State=UP TotalNodes=4'")
    program("sinfo", "echo '(null)|2|8000|(null)'")
    program("squeue", "exit 0")
    program("srun", "exit 1")
    program("sbatch", f"[[ $* == *--test-only* ]] && exit 0; touch {tmp_path}/submitted; exit 1")
    return program


def asked(world: World, folder: Path, *settings: str) -> Asked:
    return Asked(world.config, (*GRID, *settings), folder)


def test_what_slurm_would_refuse_of_any_stage_is_said_before_anything_is_written(
    world: World, tmp_path: Path, program: Callable[[str, str], None]
) -> None:
    wrong = asked(world, tmp_path / "sweep", "launch.report.partition=x", "launch.evaluate.cpus_per_task=3")
    found = [finding["text"] for finding in describe(plan_sweep(wrong))["slurm"]]
    assert found == [
        "launch.evaluate.cpus_per_task is 3 for one process a node, and no node of dev has more than 2 CPUs.",
        "launch.report.partition is 'x', which Slurm does not have: there are dev.",
    ]
    with pytest.raises(UserError) as refused:
        start(wrong)
    assert str(refused.value) == f"nothing was submitted: {' '.join(found)}"
    assert not (tmp_path / "submitted").exists()
    assert [path.name for path in (tmp_path / "sweep").rglob("*") if path.is_file()] == ["lock"]


def test_nothing_is_submitted_beside_jobs_that_an_earlier_call_could_not_note(
    world: World, tmp_path: Path, program: Callable[[str, str], None]
) -> None:
    folder = tmp_path / "sweep"
    program("squeue", f"[[ $* != *%F* ]] || echo '8|{folder}/jobs/merge/.submission_file_c.sh'")
    with pytest.raises(UserError, match=r"could not note any more \(8\); nothing was started. `scancel 8`"):
        start(asked(world, folder))
    assert not (tmp_path / "submitted").exists()


def test_folders_that_a_container_does_not_see_are_named_once_for_all_runs(world: World, tmp_path: Path) -> None:
    plan = plan_sweep(asked(world, tmp_path / "sweep", "launch.finetune.container=x.sqsh"))
    said = [sentence for sentence in plan.warnings if sentence.startswith("data.train: ")]
    assert len(said) == 1 and "is not mounted in the container of launch.finetune" in said[0]
