"""All ranks of an evaluation's job write events of that job; its first rank alone shows them in W&B."""

from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_dist.config import RunConfig
from wiseft_dist.evaluate.stage import _tracker
from wiseft_dist.ranks import Ranks
from wiseft_dist.run import open_run, run_id
from wiseft_dist.tracking import read_events


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_of_a_job_opens_a_wandb_run(tmp_path: Path, rank: int) -> None:
    config = RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"architecture": "A"},
            "data": {"train": "t"},
            "wandb": {"mode": "offline"},
        }
    )
    run = open_run(config)
    with _tracker(config, run, Ranks(rank=rank, world_size=2), "1-of-3") as tracker:
        tracker.event("started", dataset="photo", start=0, stop=5)
        tracker.event("finished", dataset="photo", start=0, stop=5)
    told = [(event["stage"], event["job"], event["event"]) for event in read_events(run)]
    assert told == [("evaluate", "1-of-3", "started"), ("evaluate", "1-of-3", "finished")]
    written = [file.name for file in (run.path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert written == ([f"run-{run_id(run)}-evaluate-1-of-3.wandb"] if rank == 0 else [])
