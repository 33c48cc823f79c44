"""Jobs of several runs start side by side on the same nodes, and what one works on nobody else begins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_run import make_world
from waiting import wait_until

from wiseft_dist import claims
from wiseft_dist.claims import StageTakenError, claim_file
from wiseft_dist.commits import write_atomically
from wiseft_dist.config import load_config
from wiseft_dist.launch.executors import SlurmExecutor
from wiseft_dist.pipeline import Job, execute
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SETTINGS = (
    "finetune.epochs=200",
    "finetune.log_every=1",
    "finetune.checkpoint.every_minutes=null",
    "launch.executor=slurm",
    "launch.snapshot=false",
    "launch.finetune.nodes=2",
    "launch.finetune.tasks_per_node=1",
    "launch.finetune.mem_gb=0.1",
    "launch.preflight.min_free_disk_gb=0",
)


def test_two_runs_start_side_by_side_on_two_nodes_and_nobody_begins_what_one_works_on(
    devcluster: Devcluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path)
    nodes = devcluster.slurm("sinfo", "--noheader", "--Node", "--format=%N").split()[:2]
    runs: dict[str, Run] = {}
    for name in ("first", "second"):
        overrides = [*SETTINGS, f"launch.finetune.extra.nodelist='{','.join(nodes)}'", f"output={tmp_path / name}"]
        config = load_config(world.config, overrides)
        run = open_run(config)
        run.jobs.mkdir()
        [submitted] = SlurmExecutor(run).submit([Job("finetune", None, config.launch.finetune)], after=[])
        runs[submitted.job_id] = run
    try:
        wait_until(lambda: all(steps(run) > 2 for run in runs.values()))
        for run in runs.values():
            [looked] = [event for event in read_events(run) if event["event"] == "preflight"]
            assert (looked["nodes"], looked["ranks"], looked["errors"]) == (nodes, 2, [])
            assert [(pair["first"], pair["second"]) for pair in looked["pairs"]] == [tuple(nodes)]
            assert looked["pairs"][0]["rate"] > 0
        monkeypatch.setattr(claims, "LEAVING_SECONDS", 0.5)
        for name in list(os.environ):
            if name.startswith("SLURM_") and name != "SLURM_CONF":
                monkeypatch.delenv(name)
        for job_id, run in runs.items():
            as_seen_from_another_machine(run)
            with pytest.raises(StageTakenError, match=f"^Slurm job {job_id} is at work on finetune of this run"):
                execute("finetune", run)
    finally:
        devcluster.slurm("scancel", *runs)


def as_seen_from_another_machine(run: Run) -> None:
    file = claim_file(run, "finetune", None)
    write_atomically(file, json.dumps(json.loads(file.read_text()) | {"machine": "another"}))


def steps(run: Run) -> int:
    return sum(event["event"] == "metrics" for event in read_events(run))
