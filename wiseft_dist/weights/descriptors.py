"""Files that stay open between reads, and no more of them than a process may have."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MOST_OPEN = 128
"""Files of all models together, beside those that are being read: a process may often have 1024."""


@dataclass
class _Opened:
    descriptor: int
    readers: int = 0


class Descriptors:
    """Files opened for reading; those least recently used are closed. May be used by several threads.

    Args:
        most: Files that stay open.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._opened: OrderedDict[tuple[object, Path], _Opened] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def reading(self, owner: object, path: Path) -> Iterator[int]:
        """The descriptor of a file, which stays open inside; a file is opened once for each ``owner`` that needs it.

        Raises:
            OSError: if it cannot be opened.
        """
        with self._lock:
            opened = self._opened.get((owner, path))
            if opened is None:
                opened = self._opened[owner, path] = _Opened(os.open(path, os.O_RDONLY))
            self._opened.move_to_end((owner, path))
            opened.readers += 1
            self._close_surplus()
        try:
            yield opened.descriptor
        finally:
            with self._lock:
                opened.readers -= 1
                if opened.readers == 0 and self._opened.get((owner, path)) is not opened:
                    os.close(opened.descriptor)

    def close(self, owner: object) -> None:
        """Close the files of an owner; one that is being read, as soon as it is not."""
        with self._lock:
            for key in [key for key in self._opened if key[0] is owner]:
                self._drop(key)

    def _close_surplus(self) -> None:
        surplus = len(self._opened) - self._most
        for key in list(self._opened)[: max(0, surplus)]:
            self._drop(key)

    def _drop(self, key: tuple[object, Path]) -> None:
        opened = self._opened.pop(key)
        if opened.readers == 0:
            os.close(opened.descriptor)
