"""Sample counts that the writer of a dataset left beside its shards, which save reading the shards.

- ``sizes.json`` of webdataset and open_clip: ``{"00000.tar": 1234, ...}``.
- ``00000_stats.json`` of img2dataset, one for each shard: its ``successes`` are the samples that were written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from wiseft_dist import storage
from wiseft_dist.errors import UserError

SIZES_FILE = "sizes.json"
STATS_SUFFIX = "_stats.json"
READERS = 16


class WrittenCount(NamedTuple):
    """Samples of one shard, and the file that says so."""

    num_samples: int
    file: str


def written_counts(urls: Sequence[str]) -> list[WrittenCount] | None:
    """The written count of every shard in their order; None unless there is one for each.

    Raises:
        UserError: naming a file of counts that holds something else.
    """
    counts = _from_sizes(urls)
    if any(count is None for count in counts):
        counts = _from_stats(urls)
    known = [count for count in counts if count is not None]
    return known if len(known) == len(urls) else None


def _from_sizes(urls: Sequence[str]) -> list[WrittenCount | None]:
    """What the ``sizes.json`` in the shards' folders say."""
    files = {folder: storage.join(folder, SIZES_FILE) for folder in {storage.parent(url) for url in urls}}
    sizes = {folder: _read(file) or {} for folder, file in files.items()}
    counts: list[WrittenCount | None] = []
    for url in urls:
        folder, _, name = url.rpartition("/")
        size = sizes[folder].get(name)
        counts.append(None if size is None else _count(size, name, files[folder]))
    return counts


def _from_stats(urls: Sequence[str]) -> list[WrittenCount | None]:
    """What the ``*_stats.json`` beside the shards say; nothing if the first shard has none."""
    first = _successes(urls[0])
    if first is None:
        return [None]
    with ThreadPoolExecutor(READERS) as pool:
        return [first, *pool.map(_successes, urls[1:])]


def _successes(url: str) -> WrittenCount | None:
    file = url.removesuffix(".tar") + STATS_SUFFIX
    stats = _read(file)
    return None if stats is None else _count(stats.get("successes"), "successes", file)


def _read(file: str) -> dict[str, Any] | None:
    """A JSON object, or None where no such file can be read: some stores answer "forbidden" for what is not there."""
    try:
        content = storage.read_bytes(file)
    except UserError:
        return None
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{file}: not a JSON object with numbers of samples. Write it again, or take it away.")
    return value


def _count(value: object, name: str, file: str) -> WrittenCount:
    if type(value) is not int or value < 0:
        raise UserError(f"{file}: {name} is {value!r}, not a number of samples. Write it again, or take it away.")
    return WrittenCount(value, file)
