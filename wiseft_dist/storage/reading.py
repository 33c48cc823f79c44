"""Reading objects: as a seekable file with read-ahead, whole, or into a local file."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.storage.faults import Cancelled
from wiseft_dist.storage.objects import StoredObject, existing
from wiseft_dist.storage.resuming import RangesNotServed, stream
from wiseft_dist.storage.seeking import SeekableObject
from wiseft_dist.storage.urls import is_remote, local_path
from wiseft_dist.storage.writing import replacing

FIRST_PART = 2**20
LARGEST_PART = 8 * 2**20
"""Bytes of a request: a reader starts small, as it may be closed after a header, and doubles up to the largest."""
PARTS_IN_FLIGHT = 2
DOWNLOAD_IN_FLIGHT = 6
FETCHING_THREADS = 8
"""Threads of a process that wait for stores."""


@contextmanager
def open_bytes(url: str, *, start: int = 0, expected: StoredObject | None = None) -> Iterator[BinaryIO]:
    """A seekable reader of the object that resumes by itself when the store breaks off.

    Args:
        url: A local path or a remote URL.
        start: Where reading begins, in bytes.
        expected: The object as it was listed. Without it the store is asked first. An object of another size is
            refused, and on a store also one of another version.

    Raises:
        UserError: if it cannot be opened or is not the expected one, naming the URL and the reason; reading raises
            the same, and RunError if the store fails for good.
    """
    if is_remote(url):
        with io.BufferedReader(_RemoteFile(expected or existing(url)), 2**16) as reader:
            reader.seek(start)
            yield cast(BinaryIO, reader)
        return
    try:
        handle = local_path(url).open("rb")
    except OSError as error:
        raise UserError(f"{url}: cannot be read: {error.strerror}.") from error
    with handle:
        _check_length(url, os.fstat(handle.fileno()).st_size, expected)
        handle.seek(start)
        yield cast(BinaryIO, handle)


def read_bytes(url: str) -> bytes:
    """The whole object."""
    with open_bytes(url) as handle:
        return handle.read()


def read_text(url: str) -> str:
    """The whole object as UTF-8 text.

    Raises:
        UserError: if it cannot be read, or is no UTF-8.
    """
    try:
        return read_bytes(url).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: byte {error.start:,} is no UTF-8 text.") from error


def download(url: str, path: Path, *, expected: StoredObject | None = None) -> None:
    """Copy a whole object into a local file, several parts at a time; the file appears when it is complete.

    Raises:
        UserError: if the object cannot be read, is not the expected one, or the file cannot be written.
        RunError: if the store fails for good.
    """
    with replacing(path, str(path)) as partial:
        if is_remote(url):
            source = expected or existing(url)
            with partial.open("wb") as file:
                _fetch_all(source, file)
            _check_length(url, partial.stat().st_size, source)
        else:
            with open_bytes(url, expected=expected) as local, partial.open("wb") as file:
                shutil.copyfileobj(local, file, LARGEST_PART)


@dataclass(frozen=True)
class _Part:
    """A stretch of an object on its way."""

    start: int
    stop: int
    content: Future[bytes]


class _RemoteFile(SeekableObject):
    """Bytes of a remote object in the order in which they are asked for, with the next parts on their way."""

    def __init__(self, source: StoredObject) -> None:
        super().__init__(source)
        self._parts: deque[_Part] = deque()
        self._part_size = FIRST_PART
        self._cancelled = threading.Event()
        self._plain: Iterator[bytes] | None = None
        """The one request of a server without ranges, and what is left of its last piece."""
        self._rest = memoryview(b"")
        self._plain_position = 0
        self._ranged = True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stubs' Buffer has no length
        piece = self._ahead()[: len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        pieces = []
        while piece := bytes(self._ahead()):
            pieces.append(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._drop()
        super().close()

    def _ahead(self) -> memoryview:
        """Bytes from the position on: at least one, unless the object is at its end."""
        if self._position >= self._source.num_bytes:
            return memoryview(b"")
        if self._ranged:
            try:
                return self._ahead_in_parts()
            except RangesNotServed:
                self._drop()
                self._ranged = False
        return self._ahead_in_plain()

    def _ahead_in_parts(self) -> memoryview:
        while self._parts and self._parts[0].stop <= self._position:
            self._parts.popleft()
        if self._parts and self._position < self._parts[0].start:
            self._drop()
        while len(self._parts) < PARTS_IN_FLIGHT + 1 and self._next_start() < self._source.num_bytes:
            self._request_next()
        part = self._parts[0]
        return memoryview(part.content.result())[self._position - part.start :]

    def _next_start(self) -> int:
        return self._parts[-1].stop if self._parts else self._position

    def _request_next(self) -> None:
        start = self._next_start()
        stop = min(start + self._part_size, self._source.num_bytes)
        self._part_size = min(2 * self._part_size, LARGEST_PART)
        self._parts.append(_Part(start, stop, _submit(self._source, start, stop, self._cancelled)))

    def _ahead_in_plain(self) -> memoryview:
        if self._plain is None or self._position < self._plain_position:
            self._plain_position, self._rest = self._position, memoryview(b"")
            self._plain = stream(self._source, self._position, self._source.num_bytes, ranged=False)
        while self._plain_position + len(self._rest) <= self._position:
            self._plain_position += len(self._rest)
            self._rest = memoryview(next(self._plain))
        return self._rest[self._position - self._plain_position :]

    def _drop(self) -> None:
        """Forget what is on its way, and stop it."""
        self._cancelled.set()
        self._cancelled = threading.Event()
        for part in self._parts:
            part.content.cancel()
        self._parts.clear()
        self._part_size = FIRST_PART
        self._plain = None


def _submit(source: StoredObject, start: int, stop: int, cancelled: threading.Event) -> Future[bytes]:
    return _pool(os.getpid()).submit(lambda: b"".join(stream(source, start, stop, cancelled=cancelled)))


@functools.lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor:
    """The process's fetching threads. ``pid`` is the key because threads do not survive a fork."""
    return ThreadPoolExecutor(FETCHING_THREADS, thread_name_prefix=f"store-{pid}")


def _fetch_all(source: StoredObject, file: IO[bytes]) -> None:
    """Write every part at its place; a server without ranges is read in one piece."""
    cancelled = threading.Event()
    starts = deque(range(0, source.num_bytes, LARGEST_PART))
    running: deque[Future[None]] = deque()
    try:
        while starts or running:
            while starts and len(running) < DOWNLOAD_IN_FLIGHT:
                running.append(_pool(os.getpid()).submit(_fetch_part, source, starts.popleft(), file, cancelled))
            running.popleft().result()
    except RangesNotServed:
        _stop(running, cancelled)
        file.seek(0)
        file.writelines(stream(source, 0, source.num_bytes, ranged=False))
    finally:
        _stop(running, cancelled)


def _stop(running: deque[Future[None]], cancelled: threading.Event) -> None:
    """Wait until nobody writes into the file any more."""
    cancelled.set()
    while running:
        future = running.popleft()
        if not future.cancel():
            with contextlib.suppress(Cancelled, RangesNotServed, UserError, RunError):
                future.result()


def _fetch_part(source: StoredObject, start: int, file: IO[bytes], cancelled: threading.Event) -> None:
    position = start
    for piece in stream(source, start, min(start + LARGEST_PART, source.num_bytes), cancelled=cancelled):
        os.pwrite(file.fileno(), piece, position)
        position += len(piece)


def _check_length(url: str, num_bytes: int, expected: StoredObject | None) -> None:
    if expected is not None and expected.num_bytes != num_bytes:
        raise UserError(
            f"{url}: has {num_bytes:,} bytes and had {expected.num_bytes:,} when it was listed. "
            "Restore it, or start again from a new listing."
        )
