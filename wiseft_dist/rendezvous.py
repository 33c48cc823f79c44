"""How the ranks of a job meet: rank 0 takes a port that the system gives, and tells it through a file of the run.

A port that is computed from a job's number can be another job's on the same node. One that the system gives and that is
held from then on cannot. Every rank says that it has come and from where, so that those that are missing have names.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from wiseft_dist.commits import write_atomically
from wiseft_dist.errors import RunError
from wiseft_dist.ranks import Ranks, discover_launcher, hosts_of_ranks, node_name

TRY_SECONDS = 10.0
"""For one try to reach what a file names; a file of an earlier time names nobody."""
LATER_SECONDS = 15.0
"""How much longer than rank 0 the others wait for its word."""
MAX_NAMED = 8
STORE_ERRORS = (DistError, RuntimeError, ValueError, OSError)
ROUNDS = count()
"""Of this process: all ranks meet equally often."""


@dataclass(frozen=True)
class Place:
    """Where rank 0 waits."""

    address: str
    port: int
    token: str
    """What is found there, and nowhere else."""


@contextmanager
def meeting(ranks: Ranks, folder: Path | None, *, limit_seconds: float) -> Iterator[tuple[Store, Ranks]]:
    """Meet the other ranks, and keep the place open.

    Args:
        ranks: This process's place among them.
        folder: One that all ranks see, for a small file while they meet. Only under torchrun it may be left out.
        limit_seconds: How long to wait for the last one.

    Yields:
        A store that all ranks share, and ``ranks`` with the port.

    Raises:
        RunError: if some do not come, with their numbers and, where known, their nodes.
    """
    number = next(ROUNDS)
    launcher = discover_launcher()
    deadline = time.monotonic() + limit_seconds
    if launcher.kind == "torchrun":
        store = _store_of_torchrun(ranks, limit_seconds)
        prefix = f"wiseft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{number}"
        _gather(PrefixStore(prefix, store), ranks, None, deadline)
        yield PrefixStore(f"{prefix}/group", store), ranks
        return
    file = None
    if ranks.world_size > 1:
        assert folder is not None, "these ranks have nowhere to meet"
        file = folder / f".meeting-{launcher.attempt}-{number}.json"
    store, place = _open(ranks, file) if ranks.is_main else _come(ranks, file, deadline, limit_seconds)
    try:
        _gather(PrefixStore("wiseft", store), ranks, file if ranks.is_main else None, deadline)
        yield PrefixStore("group", store), replace(ranks, master_address=place.address, master_port=place.port)
    finally:
        if ranks.is_main and file is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)


def missing_ranks_sentence(missing: Sequence[int], hosts: Sequence[str], world_size: int, seconds: float) -> str:
    """Who has not come.

    Args:
        missing: Their numbers.
        hosts: The node of each rank of the job, or nothing.
        world_size: Ranks of the job.
        seconds: How long they were waited for.
    """
    by_host: dict[str, list[int]] = {}
    for rank in missing:
        by_host.setdefault(hosts[rank] if rank < len(hosts) else "", []).append(rank)
    named = [
        (f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {_ranges(numbers)}") + (f" on {host}" if host else "")
        for host, numbers in list(by_host.items())[:MAX_NAMED]
    ]
    more = f" and {len(by_host) - MAX_NAMED} more nodes" if len(by_host) > MAX_NAMED else ""
    hint = ", and leave a broken node out with `extra: {exclude: NODE}`" if hosts else ""
    return (
        f"{len(missing)} of {world_size} ranks have not come within {seconds:.0f} s: {', '.join(named)}{more}. "
        f"See their logs{hint}."
    )


def _ranges(numbers: Sequence[int]) -> str:
    """``2-5, 7`` for rising numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _open(ranks: Ranks, file: Path | None) -> tuple[Store, Place]:
    """Take a port and tell where it is."""
    try:
        store = TCPStore(ranks.master_address, 0, is_master=True, wait_for_workers=False)
    except STORE_ERRORS as error:
        raise RunError(
            f"rank 0 on {node_name()} cannot open a port at {ranks.master_address}: {_first_line(error)}. "
            "That name must be this node's own, on every node."
        ) from error
    place = Place(ranks.master_address, store.port, uuid.uuid4().hex)
    store.set("token", place.token)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(place.__dict__))
    return store, place


def _come(ranks: Ranks, file: Path | None, deadline: float, limit_seconds: float) -> tuple[Store, Place]:
    """Go where rank 0 is, however late the file shows up and whatever was written there before."""
    assert file is not None
    known, reason = None, "its file has not shown up"
    while time.monotonic() < deadline:
        place = _read(file)
        if place is not None:
            known = place
            try:
                socket.create_connection((place.address, place.port), TRY_SECONDS).close()  # refused at once, or not
                store = TCPStore(place.address, place.port, is_master=False, wait_for_workers=False,
                                 timeout=timedelta(seconds=TRY_SECONDS))  # fmt: skip
                if store.get("token").decode() == place.token:
                    store.set_timeout(timedelta(seconds=limit_seconds + LATER_SECONDS))
                    return store, place
                reason = "something else answers there"
            except STORE_ERRORS as error:
                reason = _first_line(error)
        time.sleep(0.1)
    where = f" at {known.address}:{known.port}" if known else ""
    raise RunError(
        f"rank {ranks.rank} on {node_name()} has not met rank 0, on {ranks.master_address}{where}, within "
        f"{limit_seconds:.0f} s ({reason}). See rank 0's log, and whether both nodes see {file.parent}."
    )


def _read(file: Path) -> Place | None:
    with suppress(OSError):
        os.listdir(file.parent)  # a network file system then looks again what is there  # noqa: PTH208
    try:
        return Place(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _store_of_torchrun(ranks: Ranks, limit_seconds: float) -> Store:
    """The store of torchrun's agent; where somebody else set these variables, rank 0's own."""
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            ranks.master_address,
            ranks.master_port,
            is_master=ranks.is_main and not is_agents,
            wait_for_workers=False,
            timeout=timedelta(seconds=limit_seconds + LATER_SECONDS),
            multi_tenant=True,
        )
    except STORE_ERRORS as error:
        raise RunError(
            f"rank {ranks.rank} of {ranks.world_size} on {node_name()} could not join the process group at "
            f"{ranks.master_address}:{ranks.master_port}: {_first_line(error)}"
        ) from error


def _gather(store: Store, ranks: Ranks, file: Path | None, deadline: float) -> None:
    """Say that this rank has come, and wait for all. Rank 0 decides, and takes its file away.

    Raises:
        RunError: if some have not come by then.
    """
    try:
        store.set(f"host/{ranks.rank}", node_name())
        store.add("come", 1)
        verdict = _count(store, ranks, file, deadline) if ranks.is_main else store.get("verdict").decode()
    except STORE_ERRORS as error:
        raise RunError(f"rank {ranks.rank} on {node_name()}: rank 0 is gone ({_first_line(error)}).") from error
    if verdict != "all":
        raise RunError(verdict)


def _count(store: Store, ranks: Ranks, file: Path | None, deadline: float) -> str:
    started, pause = time.monotonic(), 0.01
    while store.add("come", 0) < ranks.world_size and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    missing = [rank for rank in range(ranks.world_size) if not store.check([f"host/{rank}"])]
    if file is not None:
        file.unlink(missing_ok=True)
    if not missing:
        store.set("verdict", "all")
        return "all"
    sentence = missing_ranks_sentence(missing, hosts_of_ranks(ranks), ranks.world_size, time.monotonic() - started)
    store.set("verdict", sentence)
    time.sleep(1)  # those who have come hear it before the place is gone
    return sentence


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
