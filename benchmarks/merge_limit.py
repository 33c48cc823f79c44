"""The physical limit: the bytes that a merge must read and write, moved in its pattern, with nothing computed.

Chunk by chunk both inputs are read where their tensors lie, and K pre-sized files are written and synced; by some
threads, through the page cache and past it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.merge_model import MadeUp
from wiseft_dist.weights.records import Weights
from wiseft_dist.weights.sources import open_weights

CHUNK_BYTES = 4 * 2**20
THREADS = 4
BLOCK = 4096
"""What O_DIRECT wants offsets and lengths to be multiples of."""


@dataclass(frozen=True)
class _Range:
    file: Path
    offset: int
    num_bytes: int


def move_bytes(models: MadeUp, folder: Path, copies: int, itemsize: int, *, direct: bool) -> float:
    """Read both models once and write as much as ``copies`` ensembles.

    Args:
        models: The inputs; out of the page cache, if it should be measured.
        folder: Gets the files.
        copies: K.
        itemsize: Bytes of a written parameter.
        direct: Whether files are opened with O_DIRECT.

    Returns:
        Seconds, with everything synced.
    """
    with open_weights(models.zero_shot) as zero_shot, open_weights(models.finetuned) as finetuned:
        reads = [*_chunks(_ranges(zero_shot)), *_chunks(_ranges(finetuned))]
    num_bytes = models.num_parameters * itemsize
    targets = [folder / f"copy_{number}" for number in range(copies)]
    writes = range(0, num_bytes, CHUNK_BYTES)
    flags = os.O_DIRECT if direct else 0
    started = time.perf_counter()
    with ExitStack() as stack:
        sources = {file: _open(stack, file, os.O_RDONLY | flags) for file in {part.file for part in reads}}
        outputs = [_open(stack, target, os.O_WRONLY | os.O_CREAT | flags) for target in targets]
        for output in outputs:
            os.posix_fallocate(output, 0, num_bytes)

        def move(number: int) -> None:
            with mmap.mmap(-1, CHUNK_BYTES + 2 * BLOCK) as buffer, memoryview(buffer) as view:
                for part in reads[number :: len(writes)]:
                    _read(sources[part.file], part, view)
                length = min(CHUNK_BYTES, _aligned(num_bytes - writes[number]))
                for output in outputs:
                    os.pwrite(output, view[:length], writes[number])

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(move, range(len(writes))))
            list(pool.map(os.fsync, outputs))
    return time.perf_counter() - started


def drop_cache(files: Sequence[Path]) -> None:
    """Put files out of the page cache."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _ranges(weights: Weights) -> list[_Range]:
    """Where the tensors lie, those that touch joined."""
    joined: list[_Range] = []
    extents = [(extent, record.dtype.itemsize) for record in weights.values() for extent in record.extents]
    for file, offset, num_bytes in sorted(
        (Path(str(each.file)), each.offset, each.numel * size) for each, size in extents
    ):
        if joined and joined[-1].file == file and joined[-1].offset + joined[-1].num_bytes == offset:
            joined[-1] = _Range(file, joined[-1].offset, joined[-1].num_bytes + num_bytes)
        else:
            joined.append(_Range(file, offset, num_bytes))
    return joined


def _chunks(ranges: list[_Range]) -> Iterator[_Range]:
    for part in ranges:
        for start in range(0, part.num_bytes, CHUNK_BYTES):
            yield _Range(part.file, part.offset + start, min(CHUNK_BYTES, part.num_bytes - start))


def _open(stack: ExitStack, file: Path, flags: int) -> int:
    descriptor = os.open(file, flags, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _read(source: int, part: _Range, view: memoryview) -> None:
    """Whole blocks, which is what O_DIRECT can read."""
    begin, end = part.offset // BLOCK * BLOCK, part.offset + part.num_bytes
    if begin + os.preadv(source, [view[: _aligned(end - begin)]], begin) < end:
        raise OSError(f"{part.file}: a read ended early")


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK) * BLOCK
