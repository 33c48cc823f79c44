"""The same work on many items, in several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def for_each(items: Iterable[Item], make_worker: Callable[[], Callable[[Item], None]], *, num_threads: int) -> None:
    """Do the work of a worker on every item; items are begun in their order.

    torch computes in one thread in each meanwhile, so that sums do not depend on the machine's cores.

    Args:
        items: What is worked on.
        make_worker: Called once a thread; gives what is called with every item that falls to the thread.
        num_threads: How many.

    Raises:
        Exception: what the first of the items raised that failed; those behind it may be undone.
    """
    remaining: Iterator[tuple[int, Item]] = iter(enumerate(items))
    taking, stopped = threading.Lock(), threading.Event()
    failures: dict[int, Exception] = {}

    def work() -> None:
        worker = make_worker()
        while not stopped.is_set():
            with taking:
                number, item = next(remaining, (-1, None))
            if item is None:
                return
            try:
                worker(item)
            except Exception as error:
                failures[number] = error
                stopped.set()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            running = [pool.submit(work) for _ in range(num_threads)]
            try:
                for each in running:
                    each.result()
            finally:  # an interrupted merge does not go on to its end
                stopped.set()
    finally:
        torch.set_num_threads(before)
    if failures:
        raise failures[min(failures)]
