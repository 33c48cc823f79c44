"""Decoding processes are deaf to what tells a job to stop: whoever reads from them has a checkpoint to save first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset

from wiseft_dist import storage
from wiseft_dist.data.batch import Batch, Slot
from wiseft_dist.data.workers import PixelRing, loaded
from wiseft_dist.errors import RunError

Start = Callable[..., "subprocess.Popen[str]"]
PROGRAM = """
import multiprocessing, signal, sys, time
from torch.utils.data import IterableDataset, get_worker_info
from wiseft_dist.data import workers

class Numbers(IterableDataset):
    def __iter__(self):
        yield from range(get_worker_info().id, 200, 2)
        time.sleep(600 if "hangs" in sys.argv else 0)

if __name__ == "__main__":
    if "forkserver" in sys.argv:
        import obstore
    if "group" in sys.argv:
        import torch.distributed as dist
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    told = []
    for number in workers.STOP_SIGNALS:
        signal.signal(number, lambda number, _: told.append(number))
    items = workers.loaded(Numbers(), 2)
    read = [next(items)]
    print("reads", flush=True)
    while not told:
        time.sleep(0.01)
    time.sleep(0.3)  # enough to die of it
    read += [next(items) for _ in range(199)]
    assert read == list(range(200)), read
    if "hangs" in sys.argv:
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
            child.join(30)
        print([child.exitcode for child in children])
    else:
        print(list(items))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program in a process group of its own; killed at the end with all that it has started."""
    groups = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        file = tmp_path / "program.py"
        file.write_text(PROGRAM)
        process = subprocess.Popen(
            [sys.executable, str(file), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        groups.append(process)
        return process

    yield popen
    for process in groups:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("fork", signal.SIGTERM),
        ("forkserver", signal.SIGTERM),
        pytest.param("group", signal.SIGTERM, marks=pytest.mark.matrix),
        pytest.param("fork", signal.SIGUSR2, marks=pytest.mark.matrix),
        pytest.param("forkserver", signal.SIGUSR2, marks=pytest.mark.matrix),
        pytest.param("fork", signal.SIGINT, marks=pytest.mark.matrix),
        pytest.param("forkserver", signal.SIGINT, marks=pytest.mark.matrix),
    ],
)
def test_workers_deliver_to_the_end_when_every_process_is_told_to_stop(
    start: Start, method: str, number: signal.Signals
) -> None:
    process = start(method)
    assert process.stdout is not None and process.stdout.readline() == "reads\n"
    os.killpg(process.pid, number)
    said, complaints = process.communicate(timeout=120)
    assert (process.returncode, said, complaints) == (0, "[]\n", "")


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.matrix)])
def test_a_worker_that_hangs_ends_at_its_parents_word(start: Start, method: str) -> None:
    process = start(method, "hangs")
    assert process.stdout is not None and process.stdout.readline() == "reads\n"
    os.killpg(process.pid, signal.SIGTERM)
    said, complaints = process.communicate(timeout=120)
    assert (process.returncode, said, complaints) == (0, "[0, 0]\n", "")


@pytest.mark.parametrize("method", [pytest.param("fork", marks=pytest.mark.matrix), "forkserver"])
def test_a_worker_that_hangs_ends_with_a_parent_that_is_killed(start: Start, method: str) -> None:
    process = start(method, "hangs")
    assert process.stdout is not None and process.stdout.readline() == "reads\n"
    process.kill()
    process.communicate(timeout=60)  # until whoever holds the other end of its pipes is gone


class Parents(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        yield os.getppid()


@contextmanager
def group() -> Iterator[None]:
    """This process alone, in a group with itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_no_worker_is_forked_from_a_process_that_is_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "fork_is_safe", lambda: True)  # other tests of this process may have used a store
    assert set(loaded(Parents(), 2)) == {os.getpid()}
    with group():
        [server] = set(loaded(Parents(), 2))
    assert server != os.getpid()


class Painted(IterableDataset):
    def __init__(self, ring: PixelRing) -> None:
        self.ring = ring

    def __iter__(self) -> Iterator[Slot | None]:
        pixels, slot = self.ring.take(2)
        pixels.fill_(7)
        yield slot


def test_the_memory_for_many_workers_goes_through_a_fork_server() -> None:
    with group():
        ring = PixelRing(100, capacity=3, size=4)
        [slot] = loaded(Painted(ring), 1)
    nothing = torch.zeros(0)
    painted = ring.collect([Batch(nothing, nothing, ("a", "b"), np.arange(2), (), slot)]).images
    assert painted.shape == (2, 4, 4, 3) and (painted == 7).all()


class Torn(IterableDataset):
    def __iter__(self) -> Iterator[int | RunError]:
        yield 1
        yield RunError("the store is away")


def test_workers_are_gone_when_an_error_is_raised_though_somebody_keeps_it() -> None:
    with pytest.raises(RunError, match="the store is away") as kept:
        list(loaded(Torn(), 1))
    assert multiprocessing.active_children() == [], kept
