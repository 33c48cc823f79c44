"""Who started this process, and its place among those that were started with it; read from the environment.

The same stage runs under submitit's local executor, Slurm (submitit, srun) and torchrun; who started it is found
out here and nowhere else.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from wiseft_dist.errors import RunError

FIRST_SPECIAL_STEP = 0xFFFF_FFF0
"""Slurm numbers what is no step of `srun` from here on: batch scripts, and the shell that `salloc` may start."""
Kind = Literal["torchrun", "local", "slurm", "plain"]


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of its job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 0
    """0 where it is agreed on when the ranks meet."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


@dataclass(frozen=True)
class Launcher:
    """What started this process."""

    kind: Kind
    attempt: str
    """The same for all processes that were started together, and for no others: ``slurm-123.0.0``."""
    job_id: str
    """Of the Slurm job that all this happens in, as ``123`` or ``123_4``; empty where there is none."""
    restart: int
    """How often Slurm has started that job anew."""
    is_submitted: bool
    """Whether submitit handed the job to Slurm: nobody started this process by hand."""
    is_batch: bool = False
    """Whether this runs in a Slurm job that nobody sits at, submitit's or a batch script's."""


def discover_launcher() -> Launcher:
    """Find out from the environment what started this process."""
    env = os.environ
    job_id, restart = _slurm_job(env), int(env.get("SLURM_RESTART_COUNT") or 0)
    kind = _kind(env)
    job = f"{job_id}.{restart}" if job_id else ""
    if kind == "torchrun":
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        place = "-".join([env.get(name, "") for name in names] + [job])
    elif kind == "local":
        place = f"{socket.gethostname()}-{env['SUBMITIT_LOCAL_JOB_ID']}"
    elif kind == "slurm":
        place = f"{job}.{env['SLURM_STEP_ID']}"
    else:
        place = f"{socket.gethostname()}-{os.getpid()}-{started_at(os.getpid())}"
    is_submitted = kind == "slurm" and env.get("SUBMITIT_EXECUTOR") == "slurm"
    is_batch = is_submitted or (bool(job_id) and env.get("ENVIRONMENT") == "BATCH")  # sbatch sets it, salloc does not
    return Launcher(kind, f"{kind}-{place}", job_id, restart, is_submitted, is_batch)


def speaks_for_its_group() -> bool:
    """Whether this is the first of the processes that were started together, as far as the environment says."""
    names = {"torchrun": "RANK", "local": "SUBMITIT_LOCAL_GLOBALID", "slurm": "SLURM_PROCID"}
    name = names.get(_kind(os.environ), "")
    return os.environ.get(name, "0") == "0"


def discover_ranks() -> Ranks:
    """Find out from the environment which of its job's processes this is.

    Raises:
        RunError: if Slurm's host list cannot be expanded.
    """
    env = os.environ
    kind = _kind(env)
    if kind == "torchrun":
        return Ranks(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_rank=int(env.get("LOCAL_RANK", "0")),
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", "1")),
            master_address=env["MASTER_ADDR"],
            master_port=int(env["MASTER_PORT"]),
        )
    if kind == "local":
        tasks, rank = int(env["SUBMITIT_LOCAL_NTASKS"]), int(env["SUBMITIT_LOCAL_GLOBALID"])
        return Ranks(rank, tasks, rank, tasks)
    if kind == "slurm":
        return Ranks(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_NTASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            local_world_size=int(env["SLURM_NTASKS"]) // int(env["SLURM_NNODES"]),
            master_address=expand_hosts(_node_list(env))[0],
        )
    return Ranks()


def hosts_of_ranks(ranks: Ranks) -> list[str]:
    """The node where Slurm has put each rank, as far as its usual order tells; elsewhere nothing is known of others."""
    env = os.environ
    if _kind(env) != "slurm" or not env.get("SLURM_DISTRIBUTION", "block").startswith("block"):
        return []
    hosts = expand_hosts(_node_list(env))
    return [host for host in hosts for _ in range(ranks.local_world_size)]


def node_name() -> str:
    """What people and Slurm call this machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def machine() -> str:
    """What process ids of this machine are good for: its boot, and the container that this process sees."""
    namespace = Path("/proc/self/ns/pid").readlink()
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {namespace}"


def started_at(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's own units; None if there is none.

    Two processes with the same id differ in this. Source: proc_pid_stat(5), field 22.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def _kind(env: Mapping[str, str]) -> Kind:
    if "RANK" in env and "MASTER_PORT" in env:
        return "torchrun"
    if env.get("SUBMITIT_EXECUTOR") == "local":
        return "local"
    is_step = "SLURM_PROCID" in env and int(env.get("SLURM_STEP_ID") or FIRST_SPECIAL_STEP) < FIRST_SPECIAL_STEP
    return "slurm" if is_step else "plain"


def _slurm_job(env: Mapping[str, str]) -> str:
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def _node_list(env: Mapping[str, str]) -> str:
    return env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]


def expand_hosts(node_list: str) -> list[str]:
    """The nodes of a list as Slurm writes it: ``rack[1-2]node[01-03],login``; as `scontrol show hostnames` has them.

    Slurm's own commands are not there in most container images.

    Raises:
        RunError: if it is no such list.
    """
    hosts: list[str] = []
    for pattern in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", node_list):
        pieces = re.split(r"\[([^\]]*)\]", pattern)
        choices = [[piece] if index % 2 == 0 else _numbers(piece) for index, piece in enumerate(pieces)]
        hosts += ["".join(chosen) for chosen in product(*choices)]
    if not hosts:
        raise RunError(f"{node_list!r} is no list of nodes: Slurm has not said where this job runs.")
    return hosts


def _numbers(ranges: str) -> list[str]:
    """``01-03,7`` as 01, 02, 03, 7."""
    numbers: list[str] = []
    for piece in ranges.split(","):
        first, dash, last = piece.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise RunError(f"[{ranges}] is no range of nodes: Slurm has not said where this job runs.")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers
