"""The plan of a merge: its outputs' layout, the chunks of work, and what an earlier attempt must have had in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

import wiseft_dist
from wiseft_dist.errors import RunError
from wiseft_dist.merge.chunk_mixer import memory_per_byte
from wiseft_dist.merge.direct_io import PAGE
from wiseft_dist.merge.inputs import InputReader
from wiseft_dist.merge.layout import Chunk, FileLayout, cut, lay_out
from wiseft_dist.merge.methods.method import Method

CHUNK_BYTES = 8 * 2**20
"""Of an output, that a thread mixes at a time, at most."""
LEAST_CHUNK_BYTES = 2**18
"""Smaller ones slow disks down; many models take more memory instead."""
NUM_THREADS = 4
"""Of a rank: enough to keep a disk busy while others compute."""
MEMORY_BYTES = 16 * 2**20
"""For the chunks of all threads. torch itself takes half a gigabyte, and disks like larger chunks no better."""
REMOTE_MEMORY_BYTES = 128 * 2**20
"""The same where inputs lie in a store: it answers a few large requests faster than many small ones."""


@dataclass(frozen=True)
class Plan:
    """What is done, but for the alphas."""

    files: Sequence[FileLayout]
    """Of every ensemble."""
    chunks: Sequence[Chunk]
    """Of these files; a chunk is mixed at every alpha."""
    chunk_bytes: int
    """The longest of them."""
    identity: Mapping[str, Any]
    """Everything that decides a chunk's bytes, as JSON can hold it."""


def make_plan(
    inputs: InputReader, method: Method, *, max_shard_bytes: int | None, chunk_bytes: int, settings: Mapping[str, Any]
) -> Plan:
    """Lay out the outputs and cut them.

    Args:
        inputs: What is merged.
        method: How.
        max_shard_bytes: As for :func:`lay_out`.
        chunk_bytes: The most that is mixed at a time; it may be less, so that the threads' memory is limited.
        settings: What else decides the bytes.

    Raises:
        UserError: if a tensor's dtype cannot be written.
        RunError: if an input's file is gone.
    """
    files = lay_out(inputs.models.records, dtype=inputs.dtype, max_shard_bytes=max_shard_bytes)
    chunk_bytes = _chunk_bytes(chunk_bytes, inputs)
    return Plan(files, cut(files, chunk_bytes), chunk_bytes, _identity(inputs, method, files, chunk_bytes, settings))


def changed_file(plan: Plan, inputs: InputReader) -> str | None:
    """An input's file that is not what it was when the plan was made, if there is one.

    Raises:
        RunError: if an input's file is gone.
    """
    for before, now in zip(plan.identity["inputs"], _fingerprints(inputs), strict=True):
        for file, fingerprint in now.items():
            if fingerprint != before[file]:
                return file
    return None


def _chunk_bytes(wanted: int, inputs: InputReader) -> int:
    """The same on every machine: chunks that another one has finished are taken up."""
    is_local = all(isinstance(file, Path) for weights in inputs.sources for file in weights.files())
    memory = MEMORY_BYTES if is_local else REMOTE_MEMORY_BYTES
    most = max(LEAST_CHUNK_BYTES, int(memory / NUM_THREADS / memory_per_byte(inputs)))
    return max(PAGE, min(wanted, most) // PAGE * PAGE)


def _identity(
    inputs: InputReader, method: Method, files: Sequence[FileLayout], chunk_bytes: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "inputs": _fingerprints(inputs),
        "method": method.name,
        "settings": settings,
        "carried": sorted(inputs.models.carried),
        "taken": sorted(inputs.models.taken),
        "files": {file.name: xxhash.xxh3_128(file.header).hexdigest() for file in files},
        "chunk_bytes": chunk_bytes,
        "versions": {"wiseft_dist": wiseft_dist.__version__, "torch": torch.__version__},
    }


def _fingerprints(inputs: InputReader) -> list[dict[str, dict[str, int | str]]]:
    try:
        return [weights.fingerprint() for weights in inputs.sources]
    except OSError as error:
        raise RunError(f"{error.filename}: is no longer there, or cannot be read: {error.strerror}.") from error
