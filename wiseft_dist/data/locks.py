"""Locks between the processes of a node: ``flock`` on files that come and go.

The kernel frees such a lock when its process dies, however it dies. A lock file may be removed by the one who holds it;
whoever waited for it then holds a lock on a file that is no longer there, notices, and starts over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: set[int] = set()


@contextmanager
def locked(path: Path, *, keep: bool = False) -> Iterator[int]:
    """Wait for the lock and hold it; threads of one process exclude each other too.

    Args:
        path: The lock file, made where it is missing.
        keep: Leave the file there afterwards, for locks that everybody takes all the time.

    Yields:
        The open lock file's descriptor.

    Raises:
        OSError: if the file cannot be made or locked.
    """
    descriptor = _acquire(path, wait=True)
    assert descriptor is not None  # it waited
    try:
        yield descriptor
    finally:
        _release(path, descriptor, remove=not keep)


@contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Hold the lock of an existing file if nobody does, and remove the file afterwards; yields whether it is held."""
    try:
        descriptor = _acquire(path, wait=False)
    except FileNotFoundError:
        descriptor = None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(path, descriptor, remove=True)


def _acquire(path: Path, *, wait: bool) -> int | None:
    """The descriptor of the lock file that lies at ``path`` once the lock is ours; None if another has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if wait else 0), 0o666)
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            _close(descriptor)
            return None
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the locked file is still the one at ``path``: its last holder may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int, *, remove: bool) -> None:
    try:
        if remove:
            with suppress(OSError):
                path.unlink()
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would not do while a forked child has a copy
        _close(descriptor)


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _forget_in_child() -> None:
    """A forked child must not keep its parent's locks alive."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_in_child)
