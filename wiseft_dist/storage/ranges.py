"""Parts of remote objects, read by position: never more than was asked for, or a block more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from wiseft_dist.errors import UserError
from wiseft_dist.storage.objects import StoredObject
from wiseft_dist.storage.resuming import RangesNotServed, stream
from wiseft_dist.storage.seeking import SeekableObject

BLOCK = 2**16
"""Bytes of a block: what :func:`open_ranged` fetches, and keeps, at least."""


def read_range(source: StoredObject, start: int, out: memoryview) -> None:
    """Fill ``out`` with an object's bytes from ``start`` on. May be called from several threads.

    Raises:
        UserError: if the object is missing, forbidden, replaced or shorter, or its server serves no ranges.
        RunError: if the store fails for good.
    """
    stop = start + len(out)
    if not 0 <= start <= stop <= source.num_bytes:
        raise UserError(f"{source.url}: has {source.num_bytes:,} bytes, but bytes {start:,} to {stop:,} are asked for.")
    position = 0
    try:
        for piece in stream(source, start, stop):
            out[position : position + len(piece)] = piece
            position += len(piece)
    except RangesNotServed:
        raise UserError(
            f"{source.url}: its server sends whole files only; download it and name the copy on disk."
        ) from None


@contextmanager
def open_ranged(source: StoredObject) -> Iterator[BinaryIO]:
    """A seekable reader that fetches the blocks it is asked for, and keeps them until it is closed.

    For headers and directories, which are small and looked into many times.
    """
    with _RangedFile(source) as reader:
        yield cast(BinaryIO, reader)


class _RangedFile(SeekableObject):
    def __init__(self, source: StoredObject) -> None:
        super().__init__(source)
        self._blocks: dict[int, bytes] = {}

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stubs' Buffer has no length
        count = min(len(buffer), max(0, self._source.num_bytes - self._position))
        if count == 0:
            return 0
        first, last = self._position // BLOCK, (self._position + count - 1) // BLOCK
        self._fetch([block for block in range(first, last + 1) if block not in self._blocks])
        content = b"".join(self._blocks[block] for block in range(first, last + 1))
        begin = self._position - first * BLOCK
        buffer[:count] = content[begin : begin + count]
        self._position += count
        return count

    def _fetch(self, missing: list[int]) -> None:
        """One request from the first missing block to the last."""
        if not missing:
            return
        start, stop = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, self._source.num_bytes)
        content = bytearray(stop - start)
        read_range(self._source, start, memoryview(content))
        for block in range(missing[0], missing[-1] + 1):
            self._blocks[block] = bytes(content[block * BLOCK - start : (block + 1) * BLOCK - start])
