"""Jobs of a test's cluster: what Slurm says of them, and waiting for them."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from waiting import REVOKED_SECONDS

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster


def start_now(cluster: Devcluster, job: str) -> None:
    """Let a requeued job start, instead of after Slurm's two minutes."""
    if state(cluster, job) == "PENDING" and field(cluster, job, "Reason") == "BeginTime":
        time.sleep(REVOKED_SECONDS)
        command = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
        subprocess.run(command, check=False, capture_output=True, timeout=60)


def state(cluster: Devcluster, job: str) -> str:
    return field(cluster, job, "JobState")


def field(cluster: Devcluster, job: str, name: str) -> str:
    fields = cluster.slurm("scontrol", "--oneliner", "show", "job", job).split()
    return dict(pair.split("=", 1) for pair in fields if "=" in pair)[name]
