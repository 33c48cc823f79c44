"""Ranks, the process group, and what this process may use of its machine.

The same stage runs under submitit's local executor, Slurm (submitit, srun) and torchrun; who started it is found
out here and nowhere else.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from wiseft_dist.errors import RunError, UserError


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of its job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def discover_ranks() -> Ranks:
    """Find out from the environment how this process was started.

    Raises:
        RunError: if Slurm's host list cannot be expanded.
    """
    environment = os.environ
    if "RANK" in environment and "MASTER_PORT" in environment:  # torchrun
        return Ranks(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
            master_address=environment["MASTER_ADDR"],
            master_port=int(environment["MASTER_PORT"]),
        )
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        tasks = int(environment["SUBMITIT_LOCAL_NTASKS"])
        rank = int(environment["SUBMITIT_LOCAL_GLOBALID"])
        port = _port(environment["SUBMITIT_LOCAL_JOB_ID"])
        return Ranks(rank, tasks, rank, tasks, "127.0.0.1", port)
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        return Ranks(
            rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_NTASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_world_size=int(environment["SLURM_NTASKS"]) // int(environment["SLURM_NNODES"]),
            master_address=_first_host(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]),
            master_port=_port(environment["SLURM_JOB_ID"] + environment.get("SLURM_RESTART_COUNT", "")),
        )
    return Ranks(master_port=_port(str(os.getpid())))


def _port(job_id: str) -> int:
    """A port that every rank of a job computes alike and two jobs on a machine rarely share."""
    return random.Random(job_id).randint(20_000, 32_000)  # below the range that the kernel hands out


def _first_host(node_list: str) -> str:
    command = ["scontrol", "show", "hostnames", node_list]
    try:
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise RunError(f"`{' '.join(command)}` cannot be run to find this job's first node: {error}") from error
    if answer.returncode or not answer.stdout.strip():
        raise RunError(f"`{' '.join(command)}` does not name this job's first node: {answer.stderr.strip()}")
    return answer.stdout.split()[0]


def device_of(ranks: Ranks) -> torch.device:
    """The GPU of this rank, or the CPU. Where Slurm shows each task one GPU, that one is number 0.

    Raises:
        UserError: if the machine has several GPUs, but fewer than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if ranks.local_world_size > visible > 1:
        raise UserError(
            f"{ranks.local_world_size} processes on a machine with {visible} GPUs: set tasks_per_node and "
            "gpus_per_node of this stage in launch to the same number."
        )
    return torch.device("cuda", 0 if visible == 1 else ranks.local_rank)


def use_cores(num_processes: int) -> None:
    """Give this process its share of the cores it may run on, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    allotted = os.environ.get("WISEFT_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_PER_TASK")
    torch.set_num_threads(int(allotted) if allotted else max(1, len(os.sched_getaffinity(0)) // num_processes))


@contextmanager
def process_group(ranks: Ranks, *, timeout_minutes: float, on_host: bool = False) -> Iterator[None]:
    """Join the job's process group (nccl on GPUs, gloo on CPUs) and leave it at the end.

    The variables that DeepSpeed looks for are exported, so that it never goes looking for MPI.

    Args:
        ranks: This process's place.
        timeout_minutes: After so long a collective is given up, or somewhat later: in training, the watchdog that can
            name who is missing comes first.
        on_host: Leave GPUs alone.

    Raises:
        RunError: if the group does not come together.
    """
    device = torch.device("cpu") if on_host else device_of(ranks)
    os.environ.update(
        RANK=str(ranks.rank),
        WORLD_SIZE=str(ranks.world_size),
        LOCAL_RANK=str(device.index or 0 if device.type == "cuda" else ranks.local_rank),  # DeepSpeed's device number
        MASTER_ADDR=ranks.master_address,
        MASTER_PORT=str(ranks.master_port),
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=_group_timeout(timeout_minutes),
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {ranks.rank} of {ranks.world_size} could not join the process group at "
            f"{ranks.master_address}:{ranks.master_port}: {error}"
        ) from error
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _group_timeout(minutes: float) -> timedelta:
    return timedelta(minutes=1.5 * minutes)


def together(action: Callable[[], None]) -> None:
    """Run ``action`` on every rank and raise on every rank what it raised on any.

    A rank that fails alone leaves the others waiting for it, and their complaint about that hides its own.
    """
    failure: Exception | None = None
    try:
        action()
    except Exception as error:  # whatever it is, the other ranks must hear of it
        failure = error
    told: list[UserError | RunError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, _for_other_ranks(failure))
    if failure is not None:
        raise failure
    for heard in filter(None, told):
        raise heard


def _for_other_ranks(failure: Exception | None) -> UserError | RunError | None:
    if failure is None or isinstance(failure, UserError | RunError):
        return failure
    return RunError(f"rank {dist.get_rank()} failed with {type(failure).__name__}: {failure}")


def require_single_process(stage: str) -> None:
    """Refuse to do the same work several times side by side.

    Raises:
        UserError: if this process is one of several.
    """
    world_size = discover_ranks().world_size
    if world_size > 1:
        raise UserError(f"wiseft {stage} runs in one process, and was started as {world_size}: use one task.")


Decision = TypeVar("Decision", bool, str | None, float | None)


def broadcast_from_main(value: Decision) -> Decision:
    """Rank 0's value, on every rank: for decisions that depend on clocks or the file system."""
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


class Agreement:
    """Small numbers of which every rank learns the largest without waiting for the others.

    What the ranks contribute at one step is known to all at the next; the message travels meanwhile. In a process group
    of one there is no message, and no step in between. All ranks make it, call it equally often, and close it.

    Args:
        num_values: How many numbers.
        timeout_minutes: As for the process group.
    """

    def __init__(self, num_values: int, *, timeout_minutes: float) -> None:
        self._alone = dist.get_world_size() == 1
        if not self._alone:
            self._group: Any = dist.new_group(backend="gloo", timeout=_group_timeout(timeout_minutes))
        self._values = torch.zeros(num_values, dtype=torch.int64)
        self._work: dist.Work | None = None

    def exchange(self, *values: int) -> tuple[int, ...]:
        """Contribute this step's numbers.

        Returns:
            The largest ones over all ranks, of the step before; zeros at the first.
        """
        if self._alone:
            return values
        self.close()
        agreed = tuple(self._values.tolist())
        self._values = torch.tensor(values, dtype=torch.int64)
        self._work = dist.all_reduce(self._values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Wait for the message that is under way."""
        if self._work is not None:
            self._work.wait()
            self._work = None
