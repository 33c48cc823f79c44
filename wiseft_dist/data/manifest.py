"""What is in the shards: counted once, written down, and held against what is read later.

A tar stream that ends early looks like a smaller shard, so every count that matters comes from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wiseft_dist import storage
from wiseft_dist.commits import digest, write_atomically
from wiseft_dist.data import manifest_file
from wiseft_dist.data.contents import mark_step_of, read_contents, refuse
from wiseft_dist.data.held_out import held_out_counts, held_out_positions
from wiseft_dist.data.written_counts import WrittenCount, written_counts
from wiseft_dist.errors import UserError
from wiseft_dist.progress import progress_bar

INDEX_THREADS = 16
NAMED = 3
"""Shards that an error names before it only counts."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file and what it holds."""

    url: str
    num_samples: int
    num_bytes: int
    version: str
    """Of the file that was counted: see :class:`wiseft_dist.storage.StoredObject`."""
    max_label: int | None
    """Largest class label, -1 where samples have none; None if the shard was not read."""
    content_digest: str | None
    """Hash of every member's name, size and label, in their order; None if the shard was not read."""
    marks: tuple[int, ...]
    """Byte offsets at which the samples 0, k, 2k, ... begin; empty if the shard was not read."""
    mark_step: int
    """k, 1 or more."""

    @property
    def stored(self) -> storage.StoredObject:
        """The file that was counted."""
        return storage.StoredObject(self.url, self.num_bytes, self.version)


@dataclass(frozen=True)
class Manifest:
    """The shards of one dataset, in order, and the part of them that is held out (:mod:`wiseft_dist.data.held_out`)."""

    source: str
    """The folder, glob or brace range that was read."""
    shards: tuple[Shard, ...]
    held_out_fraction: float = 0.0

    @cached_property
    def num_samples(self) -> int:
        """All samples, held-out ones included."""
        return int(self._counts.sum())

    @cached_property
    def num_held_out(self) -> int:
        """Samples kept for ID validation."""
        return int(self.held_out_counts.sum())

    @property
    def num_training(self) -> int:
        """Samples that are trained on."""
        return self.num_samples - self.num_held_out

    @cached_property
    def held_out_counts(self) -> NDArray[np.int64]:
        """Samples of each shard kept for ID validation, int64 ``[shards]``."""
        return held_out_counts(self._counts, self.held_out_fraction)

    @cached_property
    def training_counts(self) -> NDArray[np.int64]:
        """Samples of each shard that are trained on, int64 ``[shards]``."""
        return self._counts - self.held_out_counts

    def held_out(self, shard_index: int) -> NDArray[np.int64]:
        """Positions in a shard of the samples kept for ID validation, rising, int64 ``[samples]``."""
        count = int(self.held_out_counts[shard_index])
        return held_out_positions(shard_index, self.shards[shard_index].num_samples, count)

    def training_samples(self, shard_index: int) -> NDArray[np.int64]:
        """Positions in a shard of the samples that are trained on, rising, int64 ``[samples]``."""
        is_trained = np.ones(self.shards[shard_index].num_samples, dtype=bool)
        is_trained[self.held_out(shard_index)] = False
        return np.flatnonzero(is_trained)

    @cached_property
    def max_label(self) -> int:
        """Largest class label of the shards that were read, -1 where samples have none."""
        return max((shard.max_label for shard in self.shards if shard.max_label is not None), default=-1)

    @cached_property
    def content_digest(self) -> str:
        """A hash of which samples these are, wherever they lie; of a shard that was not read, its file's version."""
        contents = [
            [shard.num_samples, shard.content_digest or [shard.num_bytes, shard.version]] for shard in self.shards
        ]
        return digest([self.held_out_fraction, contents])

    def save(self, path: Path) -> None:
        """Write to a local file, as a whole or not at all."""
        write_atomically(path, self.to_text())

    def to_text(self) -> str:
        """The text of the saved file."""
        columns = {name: [getattr(shard, name) for shard in self.shards] for name in _SHARD_FIELDS}
        return manifest_file.encode(self.source, self.held_out_fraction, columns)

    @staticmethod
    def load(path: Path | str) -> Manifest:
        """Read what :meth:`save` wrote, from a local path or a URL.

        Raises:
            UserError: if the file is torn or something else.
        """
        try:
            source, held_out_fraction, columns = manifest_file.decode(storage.read_bytes(str(path)))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{path}: not a manifest of shards: {error}. Write it again with `wiseft shards index --output`; "
                "a run's own is written again by `wiseft run` once it is deleted."
            ) from None
        columns["marks"] = [tuple(marks) for marks in columns["marks"]]
        rows = zip(*(columns[name] for name in _SHARD_FIELDS), strict=True)
        return Manifest(source, tuple(Shard(*row) for row in rows), held_out_fraction)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.fromiter((shard.num_samples for shard in self.shards), dtype=np.int64, count=len(self.shards))


_SHARD_FIELDS = tuple(field.name for field in fields(Shard))


def index_shards(
    pattern: str,
    *,
    target: Sequence[str],
    held_out_fraction: float = 0.0,
    known: Manifest | None = None,
    trust_counts: bool = True,
    unique_keys: bool = False,
) -> Manifest:
    """List the shards behind a pattern, and read those of which it is not known what they hold.

    Args:
        pattern: See :func:`wiseft_dist.storage.list_shards`; or a ``.json`` that ``wiseft shards index`` wrote.
        target: The fields of which every sample must have one: ``LABEL_FIELDS`` or ``CAPTION_FIELDS``.
        held_out_fraction: Part of the samples to be kept from training, below 1.
        known: An earlier manifest for the same target. Its shards that have not changed are not read again.
        trust_counts: Where :mod:`wiseft_dist.data.written_counts` finds a count for each shard that is not known, read
            only the first of them.
        unique_keys: Refuse a key that occurs in two shards. A set of which any shard is not known is then read whole;
            keys of shards whose counts are trusted cannot be compared.

    Raises:
        UserError: naming a shard that is missing, damaged or holds a sample without image or target; or a written
            count or manifest that is not right.
    """
    if pattern.endswith(".json"):
        known = Manifest.load(pattern)
        listed, source = _still_there(pattern, known), known.source
        reused = _unchanged(listed[1:], known, trust_counts)  # the first is read: it shows whether the target fits
    else:
        listed, source = storage.list_shards(pattern), pattern
        reused = _unchanged(listed, known, trust_counts) if known else {}
        if unique_keys and len(reused) < len(listed):
            reused = {}
    fresh = [stored for stored in listed if stored.url not in reused]
    added = _index_fresh(pattern, fresh, tuple(target), trust_counts, unique_keys) if fresh else {}
    shards = tuple(reused.get(stored.url) or added[stored.url] for stored in listed)
    if not any(shard.num_samples for shard in shards):
        raise UserError(f"{pattern}: its {len(shards)} shards hold no sample.")
    return Manifest(source, shards, held_out_fraction)


def listed_shards(pattern: str) -> list[storage.StoredObject]:
    """The shards behind a pattern of :func:`index_shards` as they are now; nothing but a listing is read.

    Raises:
        UserError: if there are none, or those of a written manifest are missing or have other sizes.
    """
    if pattern.endswith(".json"):
        return _still_there(pattern, Manifest.load(pattern))
    return storage.list_shards(pattern)


def _still_there(file: str, manifest: Manifest) -> list[storage.StoredObject]:
    """The shards of a written manifest as they are now."""
    listed = {stored.url: stored for stored in storage.list_shards(manifest.source)}
    sizes = {url: stored.num_bytes for url, stored in listed.items()}
    wrong = [
        f"{shard.url} ({'another size' if shard.url in sizes else 'missing'})"
        for shard in manifest.shards
        if sizes.get(shard.url) != shard.num_bytes
    ]
    if wrong:
        raise UserError(
            f"{file}: {len(wrong)} of its {len(manifest.shards)} shards are not as they were: "
            f"{', '.join(wrong[:NAMED])}{', ...' if len(wrong) > NAMED else ''}. "
            "Put them back, or write it again with `wiseft shards index --output`."
        )
    return [listed[shard.url] for shard in manifest.shards]


def _unchanged(listed: Iterable[storage.StoredObject], known: Manifest, trust_counts: bool) -> dict[str, Shard]:
    """The known shards, by URL, that are still the same files and known well enough."""
    shards = {shard.url: shard for shard in known.shards if trust_counts or shard.content_digest is not None}
    return {
        stored.url: shards[stored.url]
        for stored in listed
        if stored.url in shards and shards[stored.url].stored == stored
    }


def _index_fresh(
    pattern: str, fresh: list[storage.StoredObject], target: tuple[str, ...], trust_counts: bool, unique_keys: bool
) -> dict[str, Shard]:
    """Shards of which nothing is known yet, by URL."""
    counts = written_counts([stored.url for stored in fresh]) if trust_counts else None
    if counts is None:
        return _read_all(pattern, fresh, target, unique_keys)
    shards = _read_all(pattern, fresh[:1], target, unique_keys)
    num_samples = shards[fresh[0].url].num_samples
    if num_samples != counts[0].num_samples:
        raise UserError(
            f"{counts[0].file} says that {fresh[0].url} holds {counts[0].num_samples} samples, but it holds "
            f"{num_samples}. Write the counts again, or take that file away."
        )
    trusted = (_trusted(stored, count) for stored, count in zip(fresh[1:], counts[1:], strict=True))
    return shards | {shard.url: shard for shard in trusted}


def _trusted(stored: storage.StoredObject, count: WrittenCount) -> Shard:
    return Shard(
        stored.url, count.num_samples, stored.num_bytes, stored.version, None, None, (), mark_step_of(count.num_samples)
    )


def _read_all(
    pattern: str, listed: list[storage.StoredObject], target: tuple[str, ...], unique_keys: bool
) -> dict[str, Shard]:
    """Read shards side by side."""
    read = partial(_read_shard, target=target)
    shards: dict[str, Shard] = {}
    keys: dict[str, str] = {}  # the shard of each
    bar_of_shards = progress_bar(f"reading {pattern}", total=len(listed), unit="shards")
    with bar_of_shards as bar, ThreadPoolExecutor(INDEX_THREADS) as pool:
        for shard, its_keys in pool.map(read, listed):
            shards[shard.url] = shard
            if unique_keys:
                _add_keys(keys, its_keys, shard.url)
            bar.advance()
    return shards


def _read_shard(stored: storage.StoredObject, *, target: tuple[str, ...]) -> tuple[Shard, tuple[str, ...]]:
    """A shard and the keys of its samples."""
    held = read_contents(stored, target=target, report=refuse)
    shard = Shard(
        stored.url,
        len(held.keys),
        stored.num_bytes,
        stored.version,
        held.max_label,
        held.content_digest,
        held.marks,
        held.mark_step,
    )
    return shard, held.keys


def _add_keys(keys: dict[str, str], more: Iterable[str], url: str) -> None:
    for key in more:
        first = keys.setdefault(key, url)
        if first != url:
            raise UserError(f"{url}: sample {key!r} is also in {first}. Write these shards with keys that differ.")
