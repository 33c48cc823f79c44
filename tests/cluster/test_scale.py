"""A thousand jobs are one array with a cap, handed over in one go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_run import World

from wiseft_dist.config import Resources, load_config
from wiseft_dist.launch.executors import SlurmExecutor
from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.pipeline import Job
from wiseft_dist.run import Run, open_run
from wiseft_dist.slurm import active_ids

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def new_run(world: World, tmp_path: Path) -> Run:
    """A run directory in which nothing has happened yet."""
    return open_run(load_config(world.config, [f"output={tmp_path / 'run'}"]))


def test_a_thousand_jobs_of_the_evaluation_are_one_array_with_a_cap(devcluster: Devcluster, new_run: Run) -> None:
    held = Resources(max_parallel=8, timeout_minutes=5, extra={"hold": True})
    jobs = [Job("evaluate", f"{number}-of-1000", held) for number in range(1, 1001)]
    submitted = SlurmExecutor(new_run).submit(jobs, after=[])
    [array] = {item.job_id.split("_")[0] for item in submitted}
    try:
        ids = [item.job_id for item in submitted]
        assert ids == [f"{array}_{index}" for index in range(1000)]
        assert active_ids(ids) == set(ids)
        described = devcluster.slurm("scontrol", "--oneliner", "show", "job", array)
        assert "ArrayTaskThrottle=8" in described.splitlines()[0]
        ledger = read_ledger(new_run)
        assert ledger["evaluate/1000-of-1000"].job_id == f"{array}_999"
        assert sum(entry.job_id.startswith(f"{array}_") for entry in ledger.values()) == 1000
    finally:
        devcluster.slurm("scancel", array)
