"""Which sample goes into which shard: decided, checked and written down before the first shard is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wiseft_dist.commits import digest, write_atomically
from wiseft_dist.data.pack import member_bytes, shard_bytes, shard_name
from wiseft_dist.data.packing.sources import Listing, Pictures
from wiseft_dist.errors import UserError
from wiseft_dist.progress import progress_bar

RECORD_FILE = ".pack.json"
CHECK_THREADS = 16
CHECKED_AT_ONCE = 1000
MAGIC_BYTES = 16


class Entry(NamedTuple):
    """A sample on its way into a shard."""

    name: str
    size: int
    """Bytes of the picture."""
    image_format: str
    label: int
    caption: str | None

    @property
    def member_sizes(self) -> tuple[int, ...]:
        """Sizes in bytes of the files that the sample becomes."""
        texts = (str(self.label), *([] if self.caption is None else [self.caption]))
        return (self.size, *(len(text.encode()) for text in texts))


@dataclass(frozen=True)
class ShardPlan:
    """One shard as it will be."""

    name: str
    first_key: int
    entries: tuple[Entry, ...]
    pictures: Pictures

    @property
    def num_bytes(self) -> int:
        """The shard's size in bytes, known before it is written."""
        return shard_bytes(size for entry in self.entries for size in entry.member_sizes)

    @property
    def digest(self) -> str:
        """Hash of everything that decides the shard's content, except the insides of the pictures."""
        state = hashlib.sha256(str(self.first_key).encode())
        for entry in self.entries:
            state.update(json.dumps(entry).encode())
        return state.hexdigest()[:16]

    def is_whole(self, folder: Path) -> bool:
        """Whether the shard is written: it is renamed into place, so that only its size needs a look."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.num_bytes


@dataclass(frozen=True)
class Layout:
    """How samples are dealt to shards."""

    samples_per_shard: int | None = 1000
    bytes_per_shard: int | None = None
    """Instead of a number of samples: no shard is larger, except for a single sample that is."""
    seed: int | None = 0
    """Of the shuffle; None keeps the source's order."""


def make_plan(listing: Listing, layout: Layout) -> list[ShardPlan]:
    """Check every picture's presence, size and format, and deal the samples to shards.

    Raises:
        UserError: naming the first picture that cannot be packed, and how many there are.
    """
    entries = _check(listing)
    order = sample_order(listing.num_samples, layout.seed)
    ordered = (entries[index] for index in order)
    plans: list[ShardPlan] = []
    first = 0
    for group in _groups(ordered, layout):
        plans.append(ShardPlan(shard_name(len(plans)), first, group, listing.pictures))
        first += len(group)
    return plans


def sample_order(num_samples: int, seed: int | None) -> np.ndarray:
    """Positions in the source in the order in which they are packed, int64 ``[samples]``."""
    if seed is None:
        return np.arange(num_samples)
    return np.random.Generator(np.random.Philox(key=seed)).permutation(num_samples)


def _check(listing: Listing) -> list[Entry]:
    entries: list[Entry] = []
    problems: list[str] = []
    starts = range(0, listing.num_samples, CHECKED_AT_ONCE)
    bar_of_pictures = progress_bar("checking pictures", total=listing.num_samples, unit="pictures")
    with bar_of_pictures as bar, ThreadPoolExecutor(CHECK_THREADS) as pool:
        for results in pool.map(lambda start: _check_some(listing, start), starts):
            entries += [result for result in results if isinstance(result, Entry)]
            problems += [result for result in results if isinstance(result, str)]
            bar.advance(len(results))
    if problems:
        raise UserError(
            f"{problems[0]} ({len(problems)} of {listing.num_samples} pictures cannot be packed). "
            "Mend them or take them out of the source."
        )
    return entries


def _check_some(listing: Listing, start: int) -> list[Entry | str]:
    return [_check_one(listing, i) for i in range(start, min(start + CHECKED_AT_ONCE, listing.num_samples))]


def _check_one(listing: Listing, index: int) -> Entry | str:
    """The sample's entry, or what is wrong with it."""
    name = listing.names[index]
    try:
        size, head = listing.pictures.head(name, MAGIC_BYTES)
    except OSError as error:
        return f"{listing.where(index)}: cannot be read: {error.strerror or error}"
    if size == 0:
        return f"{listing.where(index)}: is empty"
    found = image_format(head)
    if found is None:
        return f"{listing.where(index)}: is not a JPEG, PNG or WebP picture by its first bytes"
    caption = None if listing.captions is None else listing.captions[index]
    return Entry(name, size, found, int(listing.labels[index]), caption)


def image_format(head: bytes) -> str | None:
    """``jpg``, ``png`` or ``webp`` by a picture's first 16 bytes, whatever its file is called; None for others."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else None


def _groups(entries: Iterable[Entry], layout: Layout) -> Iterable[tuple[Entry, ...]]:
    """Consecutive samples that share a shard."""
    is_full = (
        _by_count(layout.samples_per_shard) if layout.bytes_per_shard is None else _by_bytes(layout.bytes_per_shard)
    )
    group: list[Entry] = []
    num_bytes = 0
    for entry in entries:
        more = sum(map(member_bytes, entry.member_sizes))
        if group and is_full(len(group), num_bytes + more):
            yield tuple(group)
            group, num_bytes = [], 0
        group.append(entry)
        num_bytes += more
    if group:
        yield tuple(group)


def _by_count(most: int | None) -> Callable[[int, int], bool]:
    return lambda count, _: most is not None and count >= most


def _by_bytes(most: int) -> Callable[[int, int], bool]:
    """Whether the file would be too large with one sample more; the end of the archive takes two records at most."""
    return lambda _, num_bytes: shard_bytes([]) + num_bytes > most


def record_plan(plans: list[ShardPlan], folder: Path, settings: dict[str, object]) -> None:
    """Write down what the folder will hold, or find that it is what was written down before.

    Raises:
        UserError: if the folder belongs to another source or other settings, saying which differ.
    """
    record = {
        "plan": digest([plan.digest for plan in plans]),
        "settings": settings,
        "num_samples": sum(len(plan.entries) for plan in plans),
        "shards": {
            plan.name: {"num_samples": len(plan.entries), "num_bytes": plan.num_bytes, "plan": plan.digest}
            for plan in plans
        },
    }
    path = folder / RECORD_FILE
    if path.exists():
        _compare(json.loads(path.read_text(encoding="utf-8")), record, folder)
    elif any(folder.glob("*.tar")):
        raise UserError(
            f"{folder}: holds shards that `wiseft shards pack` did not write. Choose another folder or split."
        )
    else:
        write_atomically(path, json.dumps(record, indent=1))


def _compare(before: dict[str, object], now: dict[str, object], folder: Path) -> None:
    if before["plan"] == now["plan"]:
        return
    old, new = before["settings"], now["settings"]
    assert isinstance(old, dict) and isinstance(new, dict)
    differ = [f"{key} was {old.get(key)}, now {new[key]}" for key in new if old.get(key) != new[key]]
    raise UserError(
        f"{folder}: belongs to another packing ({'; '.join(differ) or 'the source has changed since'}). "
        "Choose another folder or split, or delete this one to pack it anew."
    )
