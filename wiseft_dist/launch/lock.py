"""One `wiseft run` at a time: the run's lock, and who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from wiseft_dist.errors import UserError
from wiseft_dist.run import Run

KERNEL_LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class Holder:
    """The process of the `wiseft run` that is at work on a run."""

    host: str
    pid: int

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine. Of another one's, only that it did not end by itself is known."""
        return self.host == socket.gethostname()


@contextmanager
def only_one(run: Run, *, what: str = "run") -> Iterator[None]:
    """Hold the run's lock, and make its directory for it; the lock goes with the process, however that ends.

    Args:
        run: The run, or the folder of a sweep.
        what: Which of the two.

    Raises:
        UserError: if another process holds it, or nothing can be written there.
    """
    with _lock_file(run) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = run.lock_file.stat().st_ino == os.fstat(handle.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        if not is_held:  # or the other was just taking its new run away again, and the file with it
            raise UserError(f"{run.path}: another `wiseft {what}` is at work on this {what}; nothing was started.")
        handle.truncate(0)
        handle.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def _lock_file(run: Run) -> TextIO:
    try:
        run.jobs.mkdir(parents=True, exist_ok=True)
        return run.lock_file.open("a")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"output: {run.path}: nothing can be written there ({reason}); nothing was started. Choose another output."
        ) from error


def holder(run: Run) -> Holder | None:
    """Who holds the run's lock. Looks only: to try the lock would make another's try fail."""
    try:
        named = Holder(**json.loads(run.lock_file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if named.is_here and named.pid not in _locking(run.lock_file):
        return None  # it was killed, and could not take its name away
    return named


def _locking(file: Path) -> set[int]:
    """The processes of this machine that hold a lock on a file. Source: proc_locks(5)."""
    pids = set()
    with suppress(OSError):
        inode = file.stat().st_ino  # devices are written as the kernel numbers them, which stat need not do
        for line in KERNEL_LOCKS.read_text().splitlines():
            fields = line.split()
            if "->" not in fields and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
                pids.add(int(fields[4]))
    return pids
