"""Whom a stage leaves behind, and what W&B's offline files and events say of the same training."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events
from wiseft_dist.tracking.offline_files import history, offline_files
from wiseft_dist.tracking.wandb_run import wandb_id

LEAVING_SECONDS = 60.0
NOT_LOGGED = ("time", "stage", "event", "step")


def processes_with(mark: str) -> list[str]:
    """The command lines of living processes that have a variable of this value (``HOME=/there``)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if command and folder.name != str(os.getpid()) and mark.encode() in environment.split(b"\0"):
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def assert_nobody_left(mark: str) -> None:
    """Everything that was started with that variable ends by itself."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while left := processes_with(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def shown_offline(run: Run, stage: str = "finetune", job: str = "") -> list[dict[str, Any]]:
    """Every row of every offline file of a W&B run, in the order in which they were written."""
    return [row for file in offline_files(run, wandb_id(run, stage, job)) for row in history(file)]


def logged(run: Run) -> dict[int, dict[str, Any]]:
    """What the events say of each step of the fine-tuning under W&B's names; of what was said twice, the first."""
    rows: dict[int, dict[str, Any]] = {}
    for event in read_events(run):
        if (event["stage"], event["event"]) == ("finetune", "metrics"):
            values = {key: value for key, value in event.items() if key not in NOT_LOGGED}
            names = {key: key if key.startswith("system/") else f"finetune/{key}" for key in values}
            row = rows.setdefault(event["step"], {"step": event["step"]})
            rows[event["step"]] = {names[key]: value for key, value in values.items()} | row
    return rows


def without_own(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what W&B adds: ``_step``, ``_timestamp``, ``_runtime``."""
    return {key: value for key, value in row.items() if not key.startswith("_")}
