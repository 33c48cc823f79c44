"""``events.jsonl``: what happened in a run, and when. Any number of processes append to it; it is the truth."""

from __future__ import annotations

import json
import os
import time
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
    if not run.events_file.is_file():
        return []
    lines = run.events_file.read_text(encoding="utf-8", errors="replace").split("\n")
    return [event for line in lines if (event := _parsed(line)) is not None]


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


def _parsed(line: str) -> dict[str, Any] | None:
    """The event of a line; nodes that append to one file on a network file system can tear each other's lines."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
