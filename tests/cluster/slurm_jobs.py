"""Jobs of a test's cluster: what Slurm says of them, and waiting for them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

PATIENCE_SECONDS = 300


def start_now(cluster: Devcluster, job: str) -> None:
    """Let a requeued job start, instead of after Slurm's two minutes."""
    if state(cluster, job) == "PENDING":
        command = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
        subprocess.run(command, check=False, capture_output=True, timeout=60)


def state(cluster: Devcluster, job: str) -> str:
    return field(cluster, job, "JobState")


def field(cluster: Devcluster, job: str, name: str) -> str:
    fields = cluster.slurm("scontrol", "--oneliner", "show", "job", job).split()
    return dict(pair.split("=", 1) for pair in fields if "=" in pair)[name]


def wait_until(
    condition: Callable[[], bool], *, seconds_between: float = 0.5, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {patience_seconds} s"
        time.sleep(seconds_between)
