from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
import time

import pytest

from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import append_event, read_events, tracking, wandb_mode


def config_of(tmp_path, mode) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"architecture": "A"},
            "data": {"train": "t"},
            "wandb": {"mode": mode},
        }
    )


def append_many(file, writer):
    for index in range(200):
        append_event(file, writer=writer, index=index, text="x" * (20_000 if index % 20 == 0 else 50))


def test_two_processes_that_write_at_once_leave_whole_lines(tmp_path):
    run = Run(tmp_path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(run.events_file, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read_events(run)
    for name in "ab":
        assert [event["index"] for event in events if event["writer"] == name] == list(range(200))


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    run = Run(tmp_path)
    assert read_events(run) == []
    append_event(run.events_file, event="started")
    with run.events_file.open("a") as handle:
        handle.write('{"event": "fin')
    assert [event["event"] for event in read_events(run)] == ["started"]


def test_an_event_that_was_torn_takes_no_other_with_it(tmp_path):
    run = Run(tmp_path)
    append_event(run.events_file, event="started")
    with run.events_file.open("a") as handle:
        handle.write('{"event": "met')
    append_event(run.events_file, event="finished")
    assert [event["event"] for event in read_events(run)] == ["started", "finished"]
    assert run.events_file.read_text().count("\n") == 3


def test_an_event_for_which_there_is_no_room_is_an_error(tmp_path):
    run, (soft, hard) = Run(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_event(run.events_file, event="metrics", text="x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.events_file.stat().st_size == 1_000_000  # the system took what it could
    append_event(run.events_file, event="finished")
    assert [event["event"] for event in read_events(run)] == ["finished"]


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


def test_offline_mode_writes_a_real_run_into_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = config_of(tmp_path, "offline")
    run = open_run(config)
    with tracking(config, run, "finetune") as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        tracker.summary({"accuracy": 0.75})
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (record,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process may write on after `finish` has returned
    while b"finetune/loss" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"finetune/loss" in record.read_bytes()


def test_disabled_mode_does_without_wandb(tmp_path):
    program = f"""
import sys
from pathlib import Path
from wiseft_dist.config import RunConfig
from wiseft_dist.run import open_run
from wiseft_dist.tracking import tracking
config = RunConfig.model_validate({{"output": {str(tmp_path / "run")!r}, "model": {{"architecture": "A"}},
                                   "data": {{"train": "t"}}, "wandb": {{"mode": "disabled"}}}})
with tracking(config, open_run(config), "merge") as tracker:
    tracker.metrics({{"loss": 0.5}}, step=1)
    tracker.image("curve", Path("curve.png"))
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "events.jsonl"]


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_API_KEY": "x"}, "online"),
        (None, {"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "x", "WANDB_MODE": "online"}, "offline"),
    ],
)
def test_the_mode_is_the_configured_one_else_the_environments(monkeypatch, configured, environment, mode):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(WandbConfig(mode=configured)) == mode
