"""Files written by position and past the page cache, where the file system allows it."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from wiseft_dist.errors import RunError

PAGE = 4096
"""What O_DIRECT wants offsets, lengths and memory to be multiples of, on every file system that we know."""


def aligned_buffer(num_bytes: int) -> mmap.mmap:
    """Memory that begins at a page and takes none until it is touched."""
    return mmap.mmap(-1, max(num_bytes, PAGE))


def create_sized(path: Path, num_bytes: int, beginning: bytes) -> None:
    """Make a file of a known size with its first bytes; the rest of a file that is there already stays.

    Raises:
        RunError: if there is no room for it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
            os.pwrite(descriptor, beginning, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"{path}: no room for {num_bytes / 2**20:.0f} MiB: {error.strerror}.") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What small files are written in.

    Raises:
        RunError: in place of an OSError, naming the file that it names, or ``path``.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or path}: cannot be written: {error.strerror or error}. "
            "Free space or mend that, and give the same command again: what is finished is kept."
        ) from error


def allow_many_files() -> None:
    """Let this process open as many files as it may: a merge holds one or two for every alpha."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class PositionedFile:
    """A file of fixed size that several threads write by position.

    Raises:
        RunError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptors = [os.open(path, os.O_WRONLY)]
        except OSError as error:
            remedy = " Merge fewer alphas at a time, or raise `ulimit -n`." if error.errno == errno.EMFILE else ""
            raise RunError(f"{path}: cannot be opened: {error.strerror}.{remedy}") from error
        with suppress(OSError):  # not every file system has O_DIRECT
            self._descriptors.append(os.open(path, os.O_WRONLY | os.O_DIRECT))

    def write(self, data: memoryview, offset: int) -> None:
        """Write page-aligned bytes at a multiple of 4096; where their number is not one, the rest goes by the cache.

        Raises:
            RunError: if writing fails, naming the file and the place.
        """
        whole = len(data) // PAGE * PAGE
        try:
            self._write_pages(data[:whole], offset)
            self._write_all(self._descriptors[0], data[whole:], offset + whole)
        except OSError as error:
            raise RunError(f"{self._path}: writing failed at byte {offset}: {error.strerror}.") from error

    def flush(self) -> None:
        """Let what was written survive a power cut.

        Raises:
            RunError: if it cannot be brought to the disk.
        """
        try:
            os.fsync(self._descriptors[0])
        except OSError as error:
            raise RunError(f"{self._path}: writing failed: {error.strerror}.") from error

    def close(self) -> None:
        """Close it."""
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _write_pages(self, data: memoryview, offset: int) -> None:
        buffered, direct = self._descriptors[0], self._descriptors[-1]
        if direct != buffered:
            try:
                self._write_all(direct, data, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        self._write_all(buffered, data, offset)
        os.fdatasync(buffered)
        os.posix_fadvise(buffered, offset, len(data), os.POSIX_FADV_DONTNEED)

    def _write_all(self, descriptor: int, data: memoryview, offset: int) -> None:
        while data:
            count = os.pwrite(descriptor, data, offset)
            data, offset = data[count:], offset + count


def read_digest(path: Path, start: int, stop: int, memory: memoryview) -> bytes:
    """XXH3-128 of bytes ``[start, stop)`` of a file, or of those that are there; from the disk, not from memory.

    Args:
        path: The file.
        start: The first byte.
        stop: The byte behind the last.
        memory: Where parts of it are put meanwhile.

    Raises:
        RunError: if it cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)
            while start < stop and (count := os.preadv(descriptor, [memory[: stop - start]], start)):
                digest.update(memory[:count])
                start += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"{path}: cannot be read at byte {start}: {error.strerror}.") from error
    return digest.digest()
