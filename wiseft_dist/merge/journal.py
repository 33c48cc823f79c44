"""The journal of finished chunks: what a merge that was interrupted need not do again.

Every rank of every attempt appends to a file of its own; a line is written once a chunk stands in all outputs. A line
that the end of its writer cut off is no line.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist.merge.direct_io import writing

DIGEST_BYTES = 16
"""Of XXH3-128."""


@dataclass(frozen=True)
class Finished:
    """The digests of a finished chunk; packed, since a large model has many."""

    digests: bytes
    """One after the other: of each input's bytes as they are stored, then of the chunk at each alpha."""
    num_inputs: int

    def inputs(self) -> list[bytes]:
        """Of each input."""
        return self._all()[: self.num_inputs]

    def outputs(self) -> list[bytes]:
        """At each alpha."""
        return self._all()[self.num_inputs :]

    def _all(self) -> list[bytes]:
        return [self.digests[start : start + DIGEST_BYTES] for start in range(0, len(self.digests), DIGEST_BYTES)]


class Journal:
    """What one rank has finished in one attempt; several threads may add to it.

    Raises:
        RunError: here and in :meth:`add`, if it cannot be written.
    """

    def __init__(self, folder: Path, *, attempt: int, rank: int, alphas: Sequence[float]) -> None:
        self._path = folder / f"journal-{attempt:04d}-{rank:05d}.jsonl"
        with writing(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._adding = threading.Lock()
        self._append({"alphas": list(alphas)})

    def add(self, chunk: int, finished: Finished) -> None:
        """A chunk has been written at every alpha."""
        self._append({"chunk": chunk, "digests": finished.digests.hex()})

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _append(self, line: dict[str, object]) -> None:
        data = json.dumps(line).encode() + b"\n"
        with self._adding, writing(self._path):
            while data:
                data = data[os.write(self._descriptor, data) :]


def read_journals(folder: Path, *, alphas: Sequence[float], num_inputs: int) -> dict[int, Finished]:
    """The chunks that were finished at all of some alphas, by their numbers; the last attempt's word counts."""
    found: dict[int, Finished] = {}
    for path in journals(folder):
        first, *lines = path.read_bytes().split(b"\n")
        written = _alphas(first)
        if not set(alphas) <= set(written):
            continue
        chosen = [*range(num_inputs), *(num_inputs + written.index(alpha) for alpha in alphas)]
        for number, digests in filter(None, map(_chunk, lines)):
            if len(digests) == DIGEST_BYTES * (num_inputs + len(written)):
                parts = (digests[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)] for index in chosen)
                found[number] = Finished(b"".join(parts), num_inputs)
    return found


def journals(folder: Path) -> list[Path]:
    """All journals, the oldest attempt's first."""
    return sorted(folder.glob("journal-*.jsonl"))


def next_attempt(folder: Path) -> int:
    """A number above those of all attempts before."""
    return 1 + max((int(path.name.split("-")[1]) for path in journals(folder)), default=0)


def _alphas(line: bytes) -> list[float]:
    try:
        return list(json.loads(line)["alphas"])
    except (ValueError, KeyError, TypeError):
        return []


def _chunk(line: bytes) -> tuple[int, bytes] | None:
    try:
        parsed = json.loads(line)
        return int(parsed["chunk"]), bytes.fromhex(parsed["digests"])
    except (ValueError, KeyError, TypeError):
        return None
