"""How something written becomes trusted.

Everything that a later step relies on is committed: written aside, synced, described by a ``COMMITTED.json`` with
every file's size and SHA-256, and renamed into place. What is not committed does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wiseft_dist.errors import UserError
from wiseft_dist.progress import BYTES, progress_bar

COMMIT_FILE = "COMMITTED.json"
HASHED_AT_ONCE = 2**20
"""Bytes: large enough to be fast, small enough for the processor's cache."""


def is_committed(folder: Path) -> bool:
    """Whether the folder was committed and its files still have their sizes."""
    try:
        files = read_commit(folder)["files"]
    except (OSError, ValueError):
        return False
    return all(_size(folder / name) == entry["bytes"] for name, entry in files.items())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def read_commit(folder: Path) -> dict[str, Any]:
    """The folder's commit record: ``files`` with sizes and SHA-256, and what the writer added."""
    record: dict[str, Any] = json.loads((folder / COMMIT_FILE).read_text())
    return record


def refuse_damaged(checkpoint: Path, *, share: int = 0, num_shares: int = 1) -> None:
    """Hold the files of a committed checkpoint against their hashes.

    Args:
        checkpoint: Its folder.
        share: Which of the files are read: every ``num_shares``-th from this one on.
        num_shares: Among how many processes they are dealt.

    Raises:
        UserError: naming the first file that differs.
    """
    files = dict(sorted(read_commit(checkpoint)["files"].items())[share::num_shares])
    total = sum(entry["bytes"] for entry in files.values())
    with progress_bar(f"checking {checkpoint.name}", total=total, unit=BYTES, is_main=share == 0) as bar:
        for name, entry in files.items():
            if sha256_file(checkpoint / name, on_progress=bar.advance) != entry["sha256"]:
                raise UserError(
                    f"{checkpoint / name}: not the file that was committed. Delete {checkpoint} to resume from the one "
                    "before."
                )


def commit_digest(folder: Path) -> str:
    """One hash for the content of a committed folder, from the files' own hashes."""
    files = read_commit(folder)["files"]
    return digest([[name, files[name]["sha256"]] for name in sorted(files)])


@contextmanager
def committing(folder: Path, **record: Any) -> Iterator[Path]:
    """Write a folder's files aside and commit them together when the block ends without an error."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        yield aside
        commit(aside, folder, **record)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def commit(aside: Path, folder: Path, **record: Any) -> None:
    """Sync and hash every file of ``aside``, write the commit record and rename it to ``folder``."""
    files = {}
    for path in sorted(aside.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(aside))] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            sync(path)
    (aside / COMMIT_FILE).write_text(json.dumps(record | {"files": files}, indent=1))
    sync(aside / COMMIT_FILE)
    sync(aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    sync(folder.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file as a whole or not at all."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path, *, on_progress: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; ``on_progress`` is told how many bytes more were read."""
    found, block = hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
    with path.open("rb", buffering=0) as handle:
        while num_bytes := handle.readinto(block):
            found.update(block[:num_bytes])
            on_progress(num_bytes)
    return found.hexdigest()


def digest(value: Any) -> str:
    """A short stable hash of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
