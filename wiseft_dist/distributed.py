"""The process group, and what this process may use of its machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.ranks import Ranks, discover_ranks
from wiseft_dist.rendezvous import meeting

MIN_MEETING_MINUTES, MAX_MEETING_MINUTES = 1.0, 10.0
"""For the slowest node to start, however long a collective may take."""


def device_of(ranks: Ranks) -> torch.device:
    """The GPU of this rank, or the CPU. Where Slurm shows each task one GPU, that one is number 0.

    Raises:
        UserError: if the machine has several GPUs, but fewer than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", gpu_index(torch.cuda.device_count(), ranks.local_rank, ranks.local_world_size))


def gpu_index(num_visible: int, local_rank: int, local_world_size: int) -> int:
    """Which of the GPUs that a process sees is its own.

    A process that sees one takes it: Slurm isolates each task's (``--gpus-per-task=1``), or there is but one for all.

    Args:
        num_visible: GPUs that this process sees; of those, ``CUDA_VISIBLE_DEVICES`` may hide some.
        local_rank: Its number among the processes of its machine.
        local_world_size: How many those are.

    Raises:
        UserError: if it sees several, but fewer than there are processes.
    """
    if local_world_size > num_visible > 1:
        raise UserError(
            f"{local_world_size} processes on a machine with {num_visible} GPUs: set tasks_per_node and "
            "gpus_per_node of this stage in launch to the same number."
        )
    return 0 if num_visible == 1 else local_rank


def use_cores(num_processes: int) -> None:
    """Give this process its share of the cores it may run on, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    allotted = os.environ.get("WISEFT_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_PER_TASK")
    torch.set_num_threads(int(allotted) if allotted else max(1, len(os.sched_getaffinity(0)) // num_processes))


@contextmanager
def process_group(
    ranks: Ranks,
    *,
    timeout_minutes: float,
    folder: Path | None = None,
    on_host: bool = False,
    meeting_minutes: float | None = None,
) -> Iterator[Ranks]:
    """Join the job's process group (nccl on GPUs, gloo on CPUs) and leave it at the end.

    The variables that DeepSpeed looks for are exported, so that it never goes looking for MPI.

    Args:
        ranks: This process's place.
        timeout_minutes: After so long a collective is given up, or somewhat later: in training, the watchdog that can
            name who is missing comes first.
        folder: One that all ranks see, where they learn where to meet; not needed under torchrun, or alone.
        on_host: Leave GPUs alone.
        meeting_minutes: How long to wait for the last rank; left out, as long as for a collective, within reason.

    Yields:
        The ranks, with the port where they have met.

    Raises:
        RunError: if the group does not come together, naming who is missing.
    """
    device = torch.device("cpu") if on_host else device_of(ranks)
    minutes = meeting_minutes or max(MIN_MEETING_MINUTES, min(timeout_minutes, MAX_MEETING_MINUTES))
    with meeting(ranks, folder, limit_seconds=60 * minutes) as (store, met), _exported(met, device):
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=met.rank,
                world_size=met.world_size,
                timeout=_group_timeout(timeout_minutes),
                device_id=device if device.type == "cuda" else None,
            )
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise RunError(
                f"rank {met.rank} of {met.world_size} could not join the process group at "
                f"{met.master_address}:{met.master_port}: {error}"
            ) from error
        try:
            yield met
            dist.barrier()
        finally:
            dist.destroy_process_group()


@contextmanager
def _exported(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Tell a group's place to DeepSpeed, and to nobody after that: it would look like a launcher's."""
    place = {
        "RANK": ranks.rank,
        "WORLD_SIZE": ranks.world_size,
        "LOCAL_RANK": device.index or 0 if device.type == "cuda" else ranks.local_rank,  # DeepSpeed's device number
        "LOCAL_WORLD_SIZE": ranks.local_world_size,
        "MASTER_ADDR": ranks.master_address,
        "MASTER_PORT": ranks.master_port,
    }
    before = {name: os.environ.get(name) for name in place}
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
