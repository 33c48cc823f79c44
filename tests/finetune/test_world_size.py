"""A run goes on under another number of processes, in mid-epoch, as if there had always been as many."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import finish, launch, metrics, start, tiny_config, trained, training_state, write_shards

from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events

SETTINGS: dict[str, Any] = {"epochs": 9, "global_batch_size": 12, "zero_stage": 2, "ema": {"decay": 0.9}}
STEPS = 30


def train_until(run: Run, processes: int, step: int) -> None:
    """One session that is told to stop once ``step`` steps are done."""
    ranks = start(run, processes)
    deadline = time.monotonic() + 100
    while max(metrics(run, "loss"), default=0) < step and time.monotonic() < deadline:
        time.sleep(0.002)
    ranks[-1].send_signal(signal.SIGTERM)
    for code, error in finish(ranks):
        assert code == 130, error[-4000:]


def test_two_then_four_then_one_process_see_every_sample_once(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    undisturbed = trained(tiny_config(tmp_path / "undisturbed", shards, **SETTINGS))

    folder = tmp_path / "run"
    run = open_run(tiny_config(folder, shards, processes=2, **SETTINGS))
    train_until(run, 2, step=4)
    open_run(tiny_config(folder, shards, processes=4, **SETTINGS))
    train_until(run, 4, step=14)
    open_run(tiny_config(folder, shards, processes=1, **SETTINGS | {"zero_stage": 0, "micro_batch_size": 6}))
    for code, error in launch(run, 1):
        assert code == 0, error[-4000:]

    events = read_events(run)
    sessions = [(event["step"], event["world_size"]) for event in events if event["event"] == "started"]
    assert [world_size for _, world_size in sessions] == [2, 4, 1]
    assert 0 < sessions[1][0] < sessions[2][0] < STEPS
    assert metrics(run, "loss") == pytest.approx(metrics(undisturbed, "loss"), rel=5e-3)
    assert [event["step"] for event in events if event["event"] == "metrics"] == list(range(1, STEPS + 1))
    receipts = [(event["epoch"], event["seen"], event["of"]) for event in events if event["event"] == "epoch"]
    assert receipts == [(epoch, 40, 40) for epoch in range(9)]

    found, expected = training_state(run), training_state(undisturbed)
    assert found.keys() == expected.keys() and any(name.startswith("ema/") for name in found)
    for name in expected:
        if not name.startswith("exp_avg"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=2e-3)
