"""``events.jsonl``: what happened in a run, and when. Any number of processes append to it; it is the truth."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from wiseft_dist.run import Run


def append_event(file: Path, **values: Any) -> None:
    """Append one JSON object; a line is one write to the system, however long, so that writers do not mix.

    Raises:
        OSError: if not all of it could be written. What was torn then stays a line of its own.
    """
    line = (json.dumps({"time": round(time.time(), 3)} | values, default=str) + "\n").encode()
    with file.open("a+b", buffering=0) as handle:
        line = line if _ends_in_newline(handle) else b"\n" + line
        while line:  # a disk that fills takes a part first and refuses the rest
            line = line[handle.write(line) :]


def _ends_in_newline(handle: FileIO) -> bool:
    """Whether a line can begin here; another writer that is not done yet makes it no, and an empty line then."""
    size = handle.seek(0, os.SEEK_END)
    return size == 0 or os.pread(handle.fileno(), 1, size - 1) == b"\n"


def read_events(run: Run) -> list[dict[str, Any]]:
    """Every event so far, oldest first; lines that are torn or still being written are left out."""
    return list(each_event(run))


def each_event(run: Run) -> Iterator[dict[str, Any]]:
    """The same one after the other: a long run has more of them than should be in memory at once."""
    if not run.events_file.is_file():
        return
    with run.events_file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            event = _parsed(line)
            if event is not None:
                yield event


def read_events_from(run: Run, offset: int) -> list[dict[str, Any]]:
    """The events from a byte of the file on; of a line that began before it, nothing.

    Args:
        run: The run.
        offset: Negative: so many bytes before the end.
    """
    try:
        with run.events_file.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            handle.seek(max(0, start - 1))
            lines = handle.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    if start:
        lines = lines[1:]  # empty where the byte before was the end of a line
    return [event for line in lines if (event := _parsed(line)) is not None]


class Tail:
    """Reads a run's events piece by piece, from the first on, while others append to them."""

    def __init__(self, run: Run) -> None:
        self._file, self._offset, self._torn = run.events_file, 0, b""

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every event since the last call, each with the byte at which its line begins; of half a line, nothing yet."""
        try:
            with self._file.open("rb") as handle:
                handle.seek(self._offset)
                new = handle.read()
        except FileNotFoundError:
            return
        begin = self._offset - len(self._torn)
        self._offset += len(new)
        *lines, self._torn = (self._torn + new).split(b"\n")
        for line in lines:
            if (event := _parsed(line.decode(errors="replace"))) is not None:
                yield begin, event
            begin += len(line) + 1


def _parsed(line: str) -> dict[str, Any] | None:
    """The event of a line; nodes that append to one file on a network file system can tear each other's lines."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
