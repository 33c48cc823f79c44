"""A stage tells its events; W&B is shown them from another process, or not at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mirrored import shown_offline, without_own

from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.errors import UserError
from wiseft_dist.pipeline import execute
from wiseft_dist.run import open_run
from wiseft_dist.tracking import read_events, tracking, wandb_mode
from wiseft_dist.tracking.offline_files import offline_files, records
from wiseft_dist.tracking.wandb_run import wandb_id


def config_of(tmp_path, mode) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"architecture": "A"},
            "data": {"train": "t"},
            "wandb": {"mode": mode},
        }
    )


def test_events_metrics_and_summary_are_written_down_with_their_stage(tmp_path):
    config = config_of(tmp_path, "disabled")
    run = open_run(config)
    with tracking(config, run, "finetune") as tracker:
        tracker.event("started", step=0)
        tracker.metrics({"loss": 0.5}, step=5)
        tracker.summary({"accuracy": 0.75})
    started, metrics, summary = ({k: v for k, v in event.items() if k != "time"} for event in read_events(run))
    assert started == {"stage": "finetune", "event": "started", "step": 0}
    assert metrics == {"stage": "finetune", "event": "metrics", "step": 5, "loss": 0.5}
    assert summary == {"stage": "finetune", "event": "summary", "accuracy": 0.75}


def test_events_of_one_of_several_jobs_name_it(tmp_path):
    config = config_of(tmp_path, "disabled")
    run = open_run(config)
    with tracking(config, run, "evaluate", job="1-of-3") as tracker:
        tracker.event("started")
    (started,) = read_events(run)
    assert (started["stage"], started["job"], started["event"]) == ("evaluate", "1-of-3", "started")


def test_offline_mode_writes_a_real_run_into_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = config_of(tmp_path, "offline")
    run = open_run(config)
    with tracking(config, run, "finetune") as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        tracker.summary({"accuracy": 0.75})
    (row,) = shown_offline(run)
    assert without_own(row) == {"step": 1, "finetune/loss": 0.5}
    (file,) = offline_files(run, wandb_id(run, "finetune", ""))
    sent = [record for record in records(file) if record.HasField("summary")]
    assert any("finetune/accuracy" in str(record) for record in sent)
    assert "wandb" not in sys.modules or sys.modules["wandb"].run is None  # another process did it


def test_disabled_mode_does_without_wandb(tmp_path):
    program = f"""
import sys
from wiseft_dist.config import RunConfig
from wiseft_dist.run import open_run
from wiseft_dist.tracking import tracking
config = RunConfig.model_validate({{"output": {str(tmp_path / "run")!r}, "model": {{"architecture": "A"}},
                                   "data": {{"train": "t"}}, "wandb": {{"mode": "disabled"}}}})
with tracking(config, open_run(config), "merge") as tracker:
    tracker.metrics({{"loss": 0.5}}, step=1)
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "events.jsonl", "id"]


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_API_KEY": "x"}, "online"),
        (None, {"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_API_KEY": "x", "WANDB_MODE": "dryrun"}, "offline"),  # older words of W&B's
        (None, {"WANDB_MODE": "run"}, "online"),
        (None, {"WANDB_MODE": ""}, "offline"),
        ("offline", {"WANDB_API_KEY": "x", "WANDB_MODE": "online"}, "offline"),
    ],
)
def test_the_mode_is_the_configured_one_else_the_environments(monkeypatch, configured, environment, mode):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(WandbConfig(mode=configured)) == mode


def test_a_mode_that_is_none_is_refused_before_the_stage_begins(tmp_path, monkeypatch):
    run = open_run(config_of(tmp_path, None))
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(UserError, match="WANDB_MODE is 'shared': set it to online, offline or disabled"):
        execute("merge", run)
    (failed,) = read_events(run)
    assert (failed["event"], failed["kind"]) == ("failed", "UserError")
