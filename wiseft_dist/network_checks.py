"""The network between the nodes of a job, measured in a moment: which one holds the others up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median_high

import torch
import torch.distributed as dist

from wiseft_dist.errors import RunError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.ranks import Ranks, node_name

NETWORK_BYTES = 8 * 2**20
"""Enough to keep a fast network busy for a moment, and 10 ms on 10 Gbit/s."""
NETWORK_SECONDS = 120.0
"""For one message; what takes longer has stopped."""
SLOW = 0.25
"""A node whose best connection has less than this share of the usual bandwidth is called slow."""


@dataclass(frozen=True)
class Pair:
    """The network between two nodes, in 10^9 bytes a second and direction; 0 where nothing came through."""

    first: str
    second: str
    rate: float


def neighbours(num_nodes: int) -> list[list[tuple[int, int]]]:
    """Who measures with whom, in two rounds: nodes in a ring, each pair once, nobody in two pairs of a round."""
    if num_nodes < 2:
        return []
    first = [(node, node + 1) for node in range(0, num_nodes - 1, 2)]
    second = [(node, node + 1) for node in range(1, num_nodes - 1, 2)]
    if num_nodes % 2 == 0 and num_nodes > 2:
        second.append((num_nodes - 1, 0))
    return [first, second] if second else [first]


def judge_network(pairs: Sequence[Pair], minimum: float | None) -> list[Finding]:
    """Nodes that are slow to every neighbour: the other ends of their connections are not to blame.

    Args:
        pairs: What was measured.
        minimum: 10^9 bytes a second that each node must reach to one neighbour at least.
    """
    if not pairs:
        return []
    best: dict[str, float] = {}
    for pair in pairs:
        for host in (pair.first, pair.second):
            best[host] = max(best.get(host, 0.0), pair.rate)
    usual = median_high(pair.rate for pair in pairs)
    found = []
    for host, rate in best.items():
        text = f"the network to its neighbours reaches {rate:.3g} GB/s"
        level: Level = "ok"
        if rate == 0.0:
            level, text = "error", f"the network to its neighbours carries nothing within {NETWORK_SECONDS:.0f} s"
        elif minimum is not None and rate < minimum:
            level, text = "error", f"{text}, less than launch.preflight.min_gigabytes_per_second={minimum:g}"
        elif rate < SLOW * usual:
            level, text = "warning", f"{text}, and usual here are {usual:.3g}"
        found.append(Finding("network", level, text, host))
    return found


def measure_pairs(ranks: Ranks, leaders: Sequence[int], device: torch.device) -> dict[int, float]:
    """The rate to each neighbouring node, by its place among the nodes; only first ranks of nodes measure."""
    if ranks.rank not in leaders or len(leaders) < 2:
        return {}
    here, rates = leaders.index(ranks.rank), {}
    outgoing = torch.zeros(NETWORK_BYTES, dtype=torch.uint8, device=device)
    incoming = torch.empty_like(outgoing)
    for pairs in neighbours(len(leaders)):
        for pair in pairs:
            if here in pair:
                other = pair[1 - pair.index(here)]
                rates[other] = _exchange_rate(leaders[other], outgoing, incoming)
    return rates


def _exchange_rate(other: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> float:
    """10^9 bytes a second each way, of both ways at the same time, once the connection stands; 0 if it does not."""
    try:
        _exchange(other, outgoing[:1], incoming[:1])
        seconds = _seconds(lambda: _exchange(other, outgoing, incoming), outgoing.device)
    except (dist.DistError, RuntimeError):
        return 0.0
    return NETWORK_BYTES / seconds / 1e9


def _exchange(other: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> None:
    operations = [dist.P2POp(dist.isend, outgoing, other), dist.P2POp(dist.irecv, incoming, other)]
    for work in dist.batch_isend_irecv(operations):
        work.wait(timedelta(seconds=NETWORK_SECONDS))


def measure_all_reduce(ranks: Ranks, device: torch.device) -> float:
    """10^9 bytes a second that pass each rank, as NCCL's own tests count them: 2 (n - 1) / n times the size."""
    if ranks.world_size == 1:
        return 0.0
    numbers = torch.zeros(NETWORK_BYTES // 4, dtype=torch.float32, device=device)

    def reduce() -> None:
        work = dist.all_reduce(numbers, async_op=True)
        assert work is not None
        work.wait(timedelta(seconds=NETWORK_SECONDS))

    try:
        reduce()
        seconds = _seconds(reduce, device)
    except (dist.DistError, RuntimeError) as error:
        limit = f"{NETWORK_SECONDS:.0f} s"
        raise RunError(
            f"rank {ranks.rank} on {node_name()}: an all-reduce fails or takes over {limit}: {error}"
        ) from error
    return 2 * (ranks.world_size - 1) / ranks.world_size * NETWORK_BYTES / seconds / 1e9


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """How long it takes, with what it leaves to the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
