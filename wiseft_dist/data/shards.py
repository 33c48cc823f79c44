"""Reading samples out of tar shards, counted against the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Protocol

from wiseft_dist import storage
from wiseft_dist.data.manifest import Shard
from wiseft_dist.data.tar import METADATA, TarError, members, read_content, split_name
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.storage import StoredObject


@dataclass(frozen=True, slots=True)
class Sample:
    """The raw bytes of one sample."""

    key: str
    index: int
    """Position in its shard."""
    fields: dict[str, bytes]
    shard: str
    """URL of its shard."""

    def first(self, names: tuple[str, ...]) -> bytes:
        """The first field present of those named.

        Raises:
            BadSampleError: if there is none.
        """
        for name in names:
            if name in self.fields:
                return self.fields[name]
        raise BadSampleError(f"has none of .{', .'.join(names)}")


class BadSampleError(ValueError):
    """A sample that cannot be used: its picture does not decode, its label is missing."""


class Cache(Protocol):
    """Where shards may lie nearer than their store."""

    def open(self, stored: StoredObject) -> AbstractContextManager[IO[bytes]]:
        """The shard as a local file."""

    def prefetch(self, stored: StoredObject) -> None:
        """Start to bring the shard near."""


def read_shard(
    shard: Shard, start: int = 0, stop: int | None = None, *, cache: Cache | None = None
) -> Iterator[Sample]:
    """The samples ``[start, stop)`` of a shard in their stored order.

    Reading begins at the manifest's last mark before ``start``, and ends behind ``stop``.

    Raises:
        RunError: if the shard ends before its manifest says, goes on after it, or is not the one that was indexed.
    """
    stop = shard.num_samples if stop is None else stop
    mark = min(start // shard.mark_step, len(shard.marks) - 1) if shard.marks else 0
    index, byte = (mark * shard.mark_step, shard.marks[mark]) if shard.marks else (0, 0)
    try:
        with _open(shard.stored, byte, cache) as stream:
            for key, fields in _samples(stream, byte, first=start - index, last=stop - index):
                if start <= index < stop:
                    yield Sample(key, index, fields, shard.url)
                index += 1
                if index == stop < shard.num_samples:
                    return
    except UserError as error:
        raise RunError(str(error)) from error
    except (OSError, TarError) as error:
        raise RunError(f"{shard.url}: reading broke off at sample {index}: {error}. Copy this shard again.") from error
    if index != shard.num_samples:
        raise RunError(
            f"{shard.url} holds {index} samples, its manifest says {shard.num_samples}. "
            "Copy this shard again, or delete the run's `shards` folder if the data was changed on purpose."
        )


def read_samples(shard: Shard, places: Sequence[int], *, cache: Cache | None = None) -> Iterator[Sample]:
    """The samples of a shard at the given rising places; raises what :func:`read_shard` raises."""
    first, last = places[0], places[-1]
    samples = read_shard(shard, first, last + 1, cache=cache)
    if last - first + 1 == len(places):
        return samples
    wanted = frozenset(places)
    return (sample for sample in samples if sample.index in wanted)


@contextmanager
def _open(stored: StoredObject, byte: int, cache: Cache | None) -> Iterator[IO[bytes]]:
    """The shard's bytes from ``byte`` on."""
    if cache is None:
        with storage.open_bytes(stored.url, start=byte, expected=stored) as stream:
            yield stream
    else:
        with cache.open(stored) as stream:
            stream.seek(byte)
            yield stream


def _samples(stream: IO[bytes], byte: int, *, first: int, last: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and fields of each sample from a header on; the fields only of those from ``first`` to before ``last``."""
    current: str | None = None
    fields: dict[str, bytes] = {}
    count = 0
    for member in members(stream, byte):
        key, field = split_name(member.name)
        if key is None or METADATA.match(member.name):
            continue
        if key != current:
            if current is not None:
                yield current, fields
                count += 1
            current, fields = key, {}
        if first <= count < last:
            fields[field] = read_content(member, stream)
    if current is not None:
        yield current, fields
