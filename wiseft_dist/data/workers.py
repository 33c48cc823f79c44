"""Decoding processes: how they start, how their errors come back, and the memory that their pixels lie in."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from threading import Thread
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wiseft_dist import storage
from wiseft_dist.data.batch import Batch, Slot, weave
from wiseft_dist.errors import RunError

Item = TypeVar("Item")
PREFETCH = 4
"""Batches that each decoding process keeps ready."""
LOOK_SECONDS = 1.0
"""Between two looks of such a process at whether its parent lives."""
WORKER_MODULES = tuple(f"wiseft_dist.data.{name}" for name in ("stream", "evaluation", "transforms"))
"""What every decoding process uses."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What Slurm, or a terminal, sends to every process of a job: what to do about it is the reading process's business."""


def loaded(
    dataset: IterableDataset[Item | RunError], num_workers: int, *, modules: Sequence[str] = ()
) -> Iterator[Item]:
    """The items of every worker in turn; a worker's error is raised here as it was there.

    Args:
        dataset: What each worker iterates over.
        num_workers: Decoding processes; 0 for none.
        modules: What takes long to import and each worker needs: a fork server imports it once.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        multiprocessing_context=_context(modules) if num_workers else None,
        worker_init_fn=_prepare_worker,
    )
    with _stop_signals_blocked():
        items = iter(loader)  # starts the workers
    try:
        for item in items:
            if isinstance(item, RunError):
                raise item
            yield item
    finally:
        del items  # and the workers with it, however long somebody keeps the error and this frame


def _context(modules: Sequence[str] = ()) -> BaseContext:
    """How processes are started: by fork where all threads of this one are Python's own, else by a fork server.

    A store and a process group have threads of their own. Those of a store would be missing in the child. Those of a
    group take part in Python's bookkeeping whenever they please, and a child that is forked at such a moment waits for
    ever (https://github.com/python/cpython/issues/112275).
    """
    if storage.fork_is_safe() and not dist.is_initialized():
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*WORKER_MODULES, *modules])
    with _stop_signals_blocked():
        resource_tracker.ensure_running()  # not later, with the server: it lets SIGTERM through again
    return context


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Whatever is started meanwhile is born deaf to them: the workers, and multiprocessing's own servers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(worker: int) -> None:
    """A worker goes on delivering while its parent saves a checkpoint, however many processes were told to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a fork server may be older than this module
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Answer the parent's SIGTERM, and nobody else's, and its death; a worker that waits for a store sees neither."""
    parent, began_under = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while parent.is_alive() and os.getppid() == began_under:  # the second is seen sooner, but not behind a fork server
        told = signal.sigtimedwait([signal.SIGTERM], LOOK_SECONDS)
        if told is not None and told.si_pid == parent.pid:
            break
    os._exit(0)


def error_as_last_item(items: Iterator[Item]) -> Iterator[Item | RunError]:
    """Hand an error over as a value: raised in a worker, DataLoader would make it a page of traceback."""
    try:
        yield from items
    except RunError as error:
        yield error


def this_worker() -> tuple[int, int]:
    """Number of this decoding process, and how many there are."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


class PixelRing:
    """Where pixels lie on their way from the decoding processes: shared memory that is made once and used in turn.

    Fresh shared memory for each batch costs a quarter of the time in which a small picture is decoded.

    Args:
        num_workers: Decoding processes; 0 for none, and no shared memory.
        capacity: Most pictures that one of them hands over at a time.
        size: Height and width of a picture.
    """

    def __init__(self, num_workers: int, capacity: int, size: int) -> None:
        self._shape, self._turn = (capacity, size, size, 3), 0
        if num_workers:
            context = _context()
            self._slots = _shared_pixels((num_workers, PREFETCH + 2, *self._shape))  # one file descriptor for all
            self._free = [context.Semaphore(PREFETCH + 2) for _ in range(num_workers)]

    def take(self, count: int) -> tuple[torch.Tensor, Slot | None]:
        """Room for ``count`` pictures, uint8 ``[count, size, size, 3]``, and what the other side finds it by.

        Waits while everything that this process may use is still to be collected.
        """
        worker = get_worker_info()
        if worker is None:
            return torch.empty((count, *self._shape[1:]), dtype=torch.uint8), None
        self._free[worker.id].acquire()
        slot = Slot(worker.id, self._turn, count)
        self._turn = (self._turn + 1) % (PREFETCH + 2)
        return self._view(slot), slot

    def collect(self, batches: Sequence[Batch], *, pin_memory: bool = False) -> Batch:
        """One batch, in memory of its own, from the shares of the decoding processes; their slots are free again."""
        filled = [batch if batch.slot is None else replace(batch, images=self._view(batch.slot)) for batch in batches]
        collected = weave(filled, pin_memory=pin_memory)
        for batch in batches:
            if batch.slot is not None:
                self._free[batch.slot.worker].release()
        return collected

    def _view(self, slot: Slot) -> torch.Tensor:
        return self._slots[slot.worker, slot.turn, : slot.num_images]


def _shared_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    shared = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared, 0, shape)  # type: ignore[call-overload,no-any-return]
