"""Shards on a node's own disk: fetched once a node, shared by its processes, the longest unused thrown out first.

A shard is fetched by the process that holds its lock, into a partial file that becomes the shard by a rename once its
length is right. Locks are the kernel's and die with their process, so that whatever a killed one leaves is known for
what it is. Training never stops for a cache: where it cannot keep a shard, the shard is read from its source.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from wiseft_dist import storage
from wiseft_dist.config import DataConfig
from wiseft_dist.data.locks import locked, locked_now
from wiseft_dist.errors import UserError
from wiseft_dist.storage import StoredObject

REST_SECONDS = 300.0
"""For this long after an error of the disk a process does not try to write to it again."""
MAX_NAME = 100
"""Characters of a shard's own name that are kept in the name of its file."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
PARTIAL, LOCK = ".partial", ".lock"
_OURS = re.compile(r"[0-9a-f]{16}-.+")

logger = logging.getLogger(__name__)


def shard_cache(data: DataConfig) -> ShardCache | None:
    """The cache that the settings ask for, if any."""
    return ShardCache(Path(data.cache).expanduser(), int(data.cache_gb * 1e9)) if data.cache else None


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards, at most ``limit_bytes`` in all; every process of a node opens its own on the same folder."""

    folder: Path
    limit_bytes: int
    _process: _Process = field(default_factory=lambda: _Process(), init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Threads and complaints are one process's own."""
        return ShardCache, (self.folder, self.limit_bytes)

    @contextmanager
    def open(self, stored: StoredObject) -> Iterator[IO[bytes]]:
        """A seekable reader of the shard: of its file, fetched first where it is missing, else of its source.

        Raises:
            UserError: if the shard is not there, or is not the one that was indexed.
            RunError: if its source fails for good.
        """
        file = self._file(stored)
        if file is None:
            with storage.open_bytes(stored.url, expected=stored) as stream:
                yield stream
        else:
            with file:
                yield file

    def prefetch(self, stored: StoredObject) -> None:
        """Start to fetch the shard in this process's background thread; :meth:`open` meets whatever goes wrong."""
        if not self._is_resting():
            self._process.submit(self, stored)

    def path(self, stored: StoredObject) -> Path:
        """Where the shard is kept; another version or size of the same URL is another file."""
        identity = f"{stored.url}\n{stored.version}\n{stored.num_bytes}"
        name = stored.url.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1][-MAX_NAME:]
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{name}"

    def _file(self, stored: StoredObject) -> IO[bytes] | None:
        """The shard's open file, or None if it cannot be kept here."""
        try:
            file = _open_whole(self.path(stored), stored.num_bytes)
            return file if file is not None or self._is_resting() else self._fill(stored)
        except OSError as error:
            self._process.rests_until = time.monotonic() + REST_SECONDS
            self._complain(f"{error.strerror or error}. Shards are read from their source: free the disk or move it")
            return None

    def _is_resting(self) -> bool:
        return time.monotonic() < self._process.rests_until

    def _fill(self, stored: StoredObject) -> IO[bytes] | None:
        """Fetch the shard, unless another process did while this one waited; None if there is no room for it.

        Raises:
            OSError: if the disk refuses.
        """
        if stored.num_bytes > self.limit_bytes:
            self._complain_of_room(stored)
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(stored)
        with locked(_beside(path, LOCK)) as lock:
            file = _open_whole(path, stored.num_bytes)
            if file is not None:
                return file
            if not self._make_room(stored.num_bytes, lock):
                self._complain_of_room(stored)
                return None
            return _fetch(stored, path)

    def _complain_of_room(self, stored: StoredObject) -> None:
        size, limit, free = (count / 1e9 for count in (stored.num_bytes, self.limit_bytes, _free_bytes(self.folder)))
        self._complain(
            f"no room for {stored.url} ({size:.3g} GB; the limit is {limit:.3g} GB, the disk has {free:.3g} GB "
            "left). Such shards are read from their source: raise data.cache_gb or free the disk"
        )

    def _make_room(self, num_bytes: int, lock: int) -> bool:
        """Reserve bytes for the holder of ``lock``, throwing out what was unused for longest.

        The reservation is the number written in the lock file: it counts for as long as the lock is held.
        """
        os.ftruncate(lock, 0)  # a killed process may have left its own reservation
        with locked(self.folder / LOCK, keep=True):
            shards, reserved = _contents(self.folder)
            limit = min(self.limit_bytes, sum(size for _, size, _ in shards) + _free_bytes(self.folder))
            excess = sum(size for _, size, _ in shards) + reserved + num_bytes - limit
            for _, size, shard in sorted(shards):
                if excess <= 0:
                    break
                shard.unlink(missing_ok=True)
                excess -= size
            if excess <= 0:
                os.pwrite(lock, str(num_bytes).encode(), 0)
            return excess <= 0

    def _complain(self, what: str) -> None:
        if not self._process.has_complained:
            self._process.has_complained = True
            logger.warning("data.cache %s: %s.", self.folder, what)


def _open_whole(path: Path, num_bytes: int) -> IO[bytes] | None:
    """The file, marked as used, if it is there in its full length; it stays readable when it is thrown out."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size != num_bytes:
        file.close()
        return None
    with suppress(OSError):  # another user's file: it can be read, not marked
        os.utime(file.fileno())
    return file


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free if folder.exists() else 0


def _contents(folder: Path) -> tuple[list[tuple[float, int, Path]], int]:
    """``(last use, bytes, path)`` of every shard, and the bytes reserved by those who are fetching one.

    What a killed process left of its work is removed on the way. Files of other people are none of our business.
    """
    shards, reserved = [], 0
    for path in sorted(folder.iterdir()):
        if not _OURS.fullmatch(path.name):
            continue
        if path.suffix == LOCK:
            reserved += _reserved_bytes(path)
        elif path.suffix != PARTIAL:
            with suppress(FileNotFoundError):
                status = path.stat()
                shards.append((status.st_mtime, status.st_size, path))
    return shards, reserved


def _reserved_bytes(lock_file: Path) -> int:
    """What the holder of a lock has reserved; the lock of a dead process goes, and its partial file with it."""
    with locked_now(lock_file) as is_abandoned:
        if is_abandoned:
            _remove_partials(lock_file.with_suffix(""))
            return 0
    with suppress(OSError, ValueError):  # gone meanwhile, or nothing reserved yet
        return int(lock_file.read_text())
    return 0


def _fetch(stored: StoredObject, path: Path) -> IO[bytes]:
    """Fetch the shard aside, make it ``path``, and hand it back open: it may be thrown out at once.

    Raises:
        OSError: if the disk refuses.
    """
    partial = _beside(path, PARTIAL)
    _remove_partials(path)
    try:
        storage.download(stored.url, partial, expected=stored)
        file = _open_whole(partial, stored.num_bytes)
        if file is None:
            raise OSError(errno.EIO, f"{partial} is not {stored.num_bytes:,} bytes long")
        partial.rename(path)
        return file
    except UserError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK_ERRORS:
            raise error.__cause__ from None
        raise
    finally:
        _remove_partials(path)


def _remove_partials(path: Path) -> None:
    """Remove what is left of attempts to fetch a shard; its lock is ours."""
    for left in path.parent.iterdir():
        if left.name.startswith(path.name + PARTIAL):
            left.unlink(missing_ok=True)


class _Process:
    """What one process knows: its background thread, and whether the disk was of use. A forked child starts afresh."""

    def __init__(self) -> None:
        self.has_complained = False
        self.rests_until = 0.0
        self._owner = 0
        self._wanted: queue.SimpleQueue[tuple[ShardCache, StoredObject]] = queue.SimpleQueue()

    def submit(self, cache: ShardCache, stored: StoredObject) -> None:
        """Put a shard on the thread's list; the thread starts with the first one."""
        if self._owner != os.getpid():
            self._owner, self._wanted = os.getpid(), queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._wanted,), name="shard-cache", daemon=True).start()
        self._wanted.put((cache, stored))


def _work(wanted: queue.SimpleQueue[tuple[ShardCache, StoredObject]]) -> None:
    while True:
        cache, stored = wanted.get()
        try:
            file = cache._file(stored)
            if file is not None:
                file.close()
        except Exception as error:  # open() tries again, and raises what it meets itself
            logger.info("%s: was not fetched ahead: %s", stored.url, error)
