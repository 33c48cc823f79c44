"""One rank's share of a merge: its chunks, by several threads, into files that other ranks write too."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import xxhash

from wiseft_dist.merge.chunk_mixer import ChunkMixer
from wiseft_dist.merge.direct_io import PositionedFile, read_digest
from wiseft_dist.merge.inputs import InputReader
from wiseft_dist.merge.journal import Finished, Journal
from wiseft_dist.merge.layout import Chunk, FileLayout
from wiseft_dist.merge.methods.method import Method
from wiseft_dist.merge.ranks import share
from wiseft_dist.merge.staging import Staging
from wiseft_dist.merge.threads import for_each


@dataclass(frozen=True)
class Work:
    """What all ranks do together."""

    inputs: InputReader
    method: Method
    alphas: Sequence[float]
    chunks: Sequence[Chunk]
    chunk_bytes: int
    staging: Staging
    attempt: int
    """Number of this attempt at the merge."""
    finished: Mapping[int, Finished]
    """What the journals of earlier ones say, by the chunk's number."""


@dataclass
class Done:
    """What a rank has done of it."""

    chunks: dict[int, Finished] = field(default_factory=dict)
    """That it has mixed, by number."""
    num_kept: int = 0
    """Chunks of earlier attempts that were found as they should be."""
    num_bytes_read: int = 0
    """Of inputs."""
    num_bytes_written: int = 0
    """Of outputs."""


def do_share(
    work: Work, *, rank: int, world_size: int, num_threads: int, on_progress: Callable[[int], None] = lambda _: None
) -> Done:
    """Mix and write the unfinished chunks that fall to a rank, after a look at the finished ones that do.

    Args:
        work: The whole of it.
        rank: This rank.
        world_size: How many ranks there are.
        num_threads: Of this rank; each has memory for one chunk.
        on_progress: Told the bytes that have been written, or found there, at all alphas together.

    Raises:
        UserError: if an input or a mixture holds a number that it must not.
        RunError: if reading or writing fails, naming the file.
    """
    finished = [chunk for chunk in work.chunks if chunk.number in work.finished]
    missing = [chunk for chunk in work.chunks if chunk.number not in work.finished]
    mine = [chunk for part in (finished, missing) for chunk in share(part, _num_bytes, rank, world_size)]
    journal = Journal(work.staging.folder, attempt=work.attempt, rank=rank, alphas=work.alphas)
    outputs, done, counting = _Outputs(work, mine), Done(), threading.Lock()

    def worker() -> Callable[[Chunk], None]:
        mixer = ChunkMixer(work.inputs, work.method, work.chunk_bytes)

        def deal_with(chunk: Chunk) -> None:
            kept = _is_as_finished(work, chunk, mixer.memory)
            if not kept:
                inputs = mixer.load(chunk)
                result = Finished(b"".join(inputs + _write(work, mixer, outputs.of(chunk.file))), len(inputs))
                journal.add(chunk.number, result)
            outputs.leave(chunk)
            num_bytes = _num_bytes(chunk) * len(work.alphas)
            with counting:
                on_progress(num_bytes)
                if kept:
                    done.num_kept += 1
                else:
                    done.chunks[chunk.number] = result
                    done.num_bytes_read += mixer.num_bytes_read
                    done.num_bytes_written += num_bytes

        return deal_with

    try:
        for_each(mine, worker, num_threads=num_threads)
    finally:
        outputs.close()
        journal.close()
    return done


class _Outputs:
    """The files of all alphas; each open from a rank's first chunk in it to its last."""

    def __init__(self, work: Work, mine: Sequence[Chunk]) -> None:
        self._work = work
        self._remaining = Counter(chunk.file.name for chunk in mine)
        self._open: dict[str, list[PositionedFile]] = {}
        self._changing = threading.Lock()

    def of(self, file: FileLayout) -> list[PositionedFile]:
        """The file of every alpha."""
        with self._changing:
            if file.name not in self._open:
                with ExitStack() as opened:
                    files = []
                    for alpha in self._work.alphas:
                        files.append(PositionedFile(self._work.staging.ensemble(alpha) / file.name))
                        opened.callback(files[-1].close)
                    opened.pop_all()
                self._open[file.name] = files
            return self._open[file.name]

    def leave(self, chunk: Chunk) -> None:
        """A chunk is done with; flush and close its files if it was the last of them."""
        with self._changing:
            self._remaining[chunk.file.name] -= 1
            is_last = self._remaining[chunk.file.name] == 0
            files = self._open.pop(chunk.file.name, []) if is_last else []
        for file in files:
            file.flush()
            file.close()

    def close(self) -> None:
        """Close what an error has left open."""
        for files in self._open.values():
            for file in files:
                file.close()


def _num_bytes(chunk: Chunk) -> int:
    return chunk.stop - chunk.start


def _write(work: Work, mixer: ChunkMixer, files: Sequence[PositionedFile]) -> list[bytes]:
    """Write the mixer's chunk at every alpha; the digest of each."""
    digests = []
    for alpha, file in zip(work.alphas, files, strict=True):
        data = mixer.mix(alpha)
        digests.append(xxhash.xxh3_128(data).digest())
        file.write(data, mixer.chunk.start)
    return digests


def _is_as_finished(work: Work, chunk: Chunk, memory: memoryview) -> bool:
    """Whether a chunk is in every output as a journal says. After a power cut it need not be."""
    if chunk.number not in work.finished:
        return False
    paths = [work.staging.ensemble(alpha) / chunk.file.name for alpha in work.alphas]
    wanted = work.finished[chunk.number].outputs()
    found = (read_digest(path, chunk.start, chunk.stop, memory) for path in paths)
    return all(digest == each for digest, each in zip(found, wanted, strict=True))
