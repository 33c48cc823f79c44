"""Reading a written model back and comparing every byte with the checksums of its commit record."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist.commits import COMMIT_FILE, read_commit, sha256_file
from wiseft_dist.errors import UserError
from wiseft_dist.merge.direct_io import aligned_buffer, read_digest
from wiseft_dist.merge.threads import for_each
from wiseft_dist.weights.safetensors_files import read_safetensors_header

NUM_THREADS = 4
MEMORY_BYTES = 4 * 2**20


@dataclass(frozen=True)
class _Range:
    """Bytes ``[start, stop)`` of a file and their XXH3-128; or all of them and their SHA-256."""

    file: Path
    start: int
    stop: int
    xxh3: str | None = None
    sha256: str | None = None

    def is_intact(self, memory: memoryview) -> bool:
        if self.sha256 is not None:
            return sha256_file(self.file) == self.sha256
        return read_digest(self.file, self.start, self.stop, memory).hex() == self.xxh3


def verify(folder: Path, *, on_progress: Callable[[int], None] = lambda _: None) -> int:
    """Read every byte of a committed folder back.

    Args:
        folder: A written ensemble, or anything else that was committed.
        on_progress: Told the number of bytes that have been found intact.

    Returns:
        The number of bytes.

    Raises:
        UserError: if nothing was committed there, or at the first difference, naming file, bytes and tensors.
        RunError: if a file cannot be read.
    """
    ranges = _ranges(folder)
    counting = threading.Lock()

    def worker() -> Callable[[_Range], None]:
        memory = memoryview(aligned_buffer(MEMORY_BYTES))

        def check(each: _Range) -> None:
            if not each.is_intact(memory):
                raise UserError(
                    f"{each.file}: bytes {each.start} to {each.stop}{_tensors(each)} are not what was written. "
                    "Delete the folder and merge again."
                )
            with counting:
                on_progress(each.stop - each.start)

        return check

    for_each(ranges, worker, num_threads=NUM_THREADS)
    return sum(each.stop - each.start for each in ranges)


def _ranges(folder: Path) -> list[_Range]:
    """In the order of the files and their bytes."""
    try:
        files = read_commit(folder)["files"]
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no written model; it has no {COMMIT_FILE}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / COMMIT_FILE}: not a readable commit record ({error}). Merge again.") from error
    ranges = []
    for name, entry in files.items():
        path, size = folder / name, entry["bytes"]
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, where {size} were written"
            raise UserError(f"{path}: {state}. Delete the folder and merge again.")
        if "sha256" in entry:
            ranges.append(_Range(path, 0, size, sha256=entry["sha256"]))
        else:
            ranges += [_Range(path, start, stop, xxh3=xxh3) for start, stop, xxh3 in entry["chunks"]]
    return ranges


def _tensors(damaged: _Range) -> str:
    """The tensors that have bytes in a range, for people."""
    try:
        records = read_safetensors_header(damaged.file)
    except UserError:
        return ""
    touched = [
        name
        for name, record in records.items()
        for extent in record.extents
        if extent.offset < damaged.stop and extent.offset + record.num_bytes > damaged.start
    ]
    if not touched:
        return ""
    return f" (tensor {touched[0]})" if len(touched) == 1 else f" (tensors {touched[0]} to {touched[-1]})"
