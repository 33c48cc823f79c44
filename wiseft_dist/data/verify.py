"""`wiseft shards verify`: every byte read, every image decoded, everything that is wrong told at once."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from wiseft_dist import storage
from wiseft_dist.data.contents import Kind, Problem, read_contents
from wiseft_dist.data.decode import DecodeError, decode
from wiseft_dist.data.manifest import listed_shards
from wiseft_dist.data.tar import TarError, members, split_name
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.progress import BYTES, Rated, progress_bar


@dataclass(frozen=True)
class Verification:
    """What was read, and everything that is wrong with it."""

    num_shards: int
    num_samples: int
    num_bytes: int
    problems: tuple[Problem, ...]
    """In the order of the shards; keys that occur in two shards come last."""


@dataclass(frozen=True)
class _Verified:
    """One shard."""

    problems: tuple[Problem, ...]
    key_hashes: NDArray[np.uint64]
    """Of its samples' keys: 8 bytes a sample, where the keys of a large dataset would not fit in memory."""


def verify_shards(
    pattern: str, *, target: Sequence[str], num_classes: int | None = None, num_workers: int
) -> Verification:
    """Read every shard to its end in processes of their own and decode every image; go on after whatever is wrong.

    Args:
        pattern: See :func:`wiseft_dist.data.manifest.index_shards`.
        target: The fields of which every sample must have one beside its image.
        num_classes: Labels must be below it; None if any number will do.
        num_workers: Processes.

    Raises:
        UserError: if there are no shards.
        RunError: if a process dies.
    """
    listed = listed_shards(pattern)
    verify = partial(_verify_shard, target=tuple(target), num_classes=num_classes)
    verified: dict[str, _Verified] = {}
    context = multiprocessing.get_context("spawn")
    rated = Rated(BYTES, sum(shard.num_bytes for shard in listed) / len(listed))
    bar_of_shards = progress_bar(f"verifying {pattern}", total=len(listed), unit="shards", rated=rated)
    try:
        with bar_of_shards as bar, ProcessPoolExecutor(min(num_workers, len(listed)), mp_context=context) as pool:
            for shard, result in _side_by_side(pool, verify, listed, 2 * num_workers):
                verified[shard.url] = result
                bar.advance()
    except BrokenProcessPool:
        raise RunError(
            f"{pattern}: a process that verified it was killed after {len(verified)} of {len(listed)} shards. "
            "Look for a lack of memory, and give fewer --workers."
        ) from None
    in_order = [verified[shard.url] for shard in listed]
    problems = [problem for result in in_order for problem in result.problems]
    problems += _repeated_keys([shard.url for shard in listed], [result.key_hashes for result in in_order])
    num_samples = sum(len(result.key_hashes) for result in in_order)
    return Verification(len(listed), num_samples, sum(shard.num_bytes for shard in listed), tuple(problems))


def _side_by_side(
    pool: ProcessPoolExecutor,
    verify: partial[_Verified],
    listed: Sequence[storage.StoredObject],
    ahead: int,
) -> Iterator[tuple[storage.StoredObject, _Verified]]:
    """The shards as they are done, of which ``ahead`` are under way: an interruption does not wait for all others."""
    rest = iter(listed)
    running: dict[Future[_Verified], storage.StoredObject] = {}
    while True:
        for shard in islice(rest, ahead - len(running)):
            running[pool.submit(verify, shard)] = shard
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _verify_shard(stored: storage.StoredObject, *, target: tuple[str, ...], num_classes: int | None) -> _Verified:
    problems: list[Problem] = []
    keys: tuple[str, ...] = ()
    try:
        keys = read_contents(
            stored, target=target, report=problems.append, check_image=_image_error, num_classes=num_classes
        ).keys
    except (UserError, RunError) as error:
        problems.append(Problem(Kind.UNREADABLE, stored.url, None, str(error).removeprefix(f"{stored.url}: ")))
    return _Verified(tuple(problems), _hashes(keys))


def _image_error(data: bytes) -> str | None:
    try:
        decode(data)
    except DecodeError as error:
        return str(error)
    return None


def _hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of every key, uint64 ``[keys]``."""
    hashes = (hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(hashes), dtype=np.uint64)


def _repeated_keys(urls: Sequence[str], key_hashes: Sequence[NDArray[np.uint64]]) -> Iterator[Problem]:
    """Keys that occur in several shards; only the headers of those shards are read again, to name the keys."""
    hashes, counts = np.unique(np.concatenate(key_hashes), return_counts=True)
    repeated = hashes[counts > 1]
    if not len(repeated):
        return
    first_shards: dict[str, str] = {}
    for url, hashes_here in zip(urls, key_hashes, strict=True):
        if not np.isin(hashes_here, repeated).any():
            continue
        for key in _keys(url, frozenset(repeated.tolist())):
            first = first_shards.setdefault(key, url)
            if first != url:
                yield Problem(Kind.DUPLICATE_KEY, url, key, f"sample {key!r} is also in {first}.")


def _keys(url: str, wanted: frozenset[int]) -> list[str]:
    """The keys of a shard that have one of these hashes, as far as the shard can be read."""
    keys: dict[str, None] = {}
    try:
        with storage.open_bytes(url) as stream:
            for member in members(stream):
                keys[split_name(member.name)[0] or ""] = None
    except (TarError, OSError, UserError, RunError):
        pass  # it has been told
    return [key for key, hashed in zip(keys, _hashes(tuple(keys)).tolist(), strict=True) if key and hashed in wanted]
