"""What all readers of remote objects share: a place in an object of known length."""

from __future__ import annotations

import io
import os

from wiseft_dist.storage.objects import StoredObject


class SeekableObject(io.RawIOBase):
    """A reader that can be set to any place of an object; how bytes get here is its subclass's business.

    Args:
        source: The object as it was listed.
    """

    def __init__(self, source: StoredObject) -> None:
        self._source, self._position = source, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, which may lie behind the end.

        Raises:
            io.UnsupportedOperation: if it lies before the beginning.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.num_bytes}[whence]
        if base + offset < 0:
            raise io.UnsupportedOperation(f"{self._source.url}: negative seek position {base + offset}")
        self._position = base + offset
        return self._position
