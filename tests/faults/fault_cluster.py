"""A Slurm of four nodes in which nodes fail, jobs are preempted, and both are soon noticed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from waiting import REVOKED_SECONDS, wait_until

DEVCLUSTER = Path(__file__).parents[2] / "slurm" / "devcluster"
SLURMD_TIMEOUT = 6
"""Seconds without an answer after which Slurm counts a node as down."""
WAITS = ("PENDING", "BeginTime")
"""What squeue says of a job that comes back."""
SLURM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


@dataclass(frozen=True)
class FaultCluster:
    """A running cluster, for one run."""

    directory: Path

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf), "PATH": SLURM_PATH}

    def slurm(self, *command: str) -> str:
        program, *arguments = command
        done = subprocess.run(
            [shutil.which(program, path=SLURM_PATH) or program, *arguments],
            capture_output=True, text=True, timeout=180, env=os.environ | self.environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, list[str]]:
        """Of each job in the queue: its name, state and reason."""
        lines = self.slurm("squeue", "--noheader", "--array", "--format=%A|%j|%T|%r").splitlines()
        return {line.split("|")[0]: line.split("|")[1:] for line in lines}

    def start_requeued_now(self) -> None:
        """Slurm lets a requeued job wait for some time; a test need not."""
        with contextlib.suppress(AssertionError):  # a job may have started or ended meanwhile
            waiting = [job for job, (_, state, reason) in self.jobs().items() if (state, reason) == WAITS]
            if waiting:
                time.sleep(REVOKED_SECONDS)
            for job in waiting:
                self.slurm("scontrol", "update", f"jobid={job}", "StartTime=now")

    def kill_slurmd(self, node: str) -> None:
        """The tasks on the node live on."""
        _devcluster("kill-node", "--slurmd-only", node, "--dir", str(self.directory))

    def kill_node(self, node: str) -> None:
        """The machine is gone: its slurmd, its step daemons and whatever ran on it."""
        _devcluster("kill-node", node, "--dir", str(self.directory))

    def wait_until_down(self, node: str) -> None:
        wait_until(lambda: "down" in self.slurm("sinfo", "--noheader", f"--nodes={node}", "--format=%T"))


@contextlib.contextmanager
def fault_cluster() -> Iterator[FaultCluster]:
    """Start one; taken down in any case, with whatever still runs on it."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/tmp") as folder:
        cluster = FaultCluster(Path(folder) / "c")
        soon = ("--set", f"SlurmdTimeout={SLURMD_TIMEOUT}")
        try:
            _devcluster("up", "--nodes", "4", "--preempt", *soon, "--dir", str(cluster.directory))
            yield cluster
        finally:
            _devcluster("down", "--dir", str(cluster.directory))


def _devcluster(*arguments: str) -> None:
    done = subprocess.run([sys.executable, str(DEVCLUSTER), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def has_slurm() -> bool:
    return shutil.which("slurmctld", path=SLURM_PATH) is not None
