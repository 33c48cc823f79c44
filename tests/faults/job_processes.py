"""The processes of a cluster's jobs, as /proc shows them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobProcess:
    """A living process that belongs to a job."""

    pid: int
    parent: int
    command: str
    job: str
    """Slurm's id of its job."""
    rank: int
    node: str
    is_task: bool
    """Whether it runs a stage, or decodes pictures for one, and is not the batch script or srun."""

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def processes_of(slurm_conf: Path) -> list[JobProcess]:
    """Everything that was started in a job of the cluster, whether or not Slurm still knows of it."""
    found = (_read(folder, f"SLURM_CONF={slurm_conf}".encode()) for folder in Path("/proc").glob("[0-9]*"))
    return [process for process in found if process is not None]


def tasks_of(slurm_conf: Path) -> list[JobProcess]:
    """The ranks of its jobs, without what they have started."""
    tasks = {process.pid: process for process in processes_of(slurm_conf) if process.is_task}
    return [process for process in tasks.values() if process.parent not in tasks]


def send_all(processes: Iterable[JobProcess], number: signal.Signals) -> None:
    for process in processes:
        process.send(number)


def _read(folder: Path, mark: bytes) -> JobProcess | None:
    """The process, if it lives in a job of that cluster; a zombie has no command line any more."""
    try:
        command = (folder / "cmdline").read_bytes()
        environment = (folder / "environ").read_bytes()
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
    variables = dict(entry.split(b"=", 1) for entry in environment.split(b"\0") if b"=" in entry)
    if not command or mark not in environment.split(b"\0") or b"SLURM_JOB_ID" not in variables:
        return None

    def variable(name: str) -> str:
        return variables.get(name.encode(), b"").decode()

    program = Path(command.split(b"\0", 1)[0].decode()).name
    return JobProcess(
        pid=int(folder.name),
        parent=parent,
        command=command.replace(b"\0", b" ").decode(errors="replace"),
        job=variable("SLURM_JOB_ID"),
        rank=int(variable("SLURM_PROCID") or -1),
        node=variable("SLURMD_NODENAME"),
        is_task=program.startswith("python") and b"submitit.core._submit" in command and b"SLURM_STEP_ID" in variables,
    )
