"""What is in the shards: counted once, written down, and held against what is read later.

A tar stream that ends early looks like a smaller shard, so every count that matters comes from here.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import numpy as np

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.progress import progress_bar
from wiseft_dist.run import digest, write_atomically

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
LABEL_FIELDS = ("cls",)
CAPTION_FIELDS = ("txt",)
INDEX_THREADS = 16
_METADATA = re.compile(r"__[^/]*__($|/)")  # members that webdataset does not count as samples


@dataclass(frozen=True)
class Shard:
    """One tar file and what it holds."""

    url: str
    num_samples: int
    max_label: int
    """Largest class label, -1 where samples have none."""
    held_out: tuple[int, ...]
    """Positions in the shard of the samples kept for ID validation, rising."""
    content_digest: str
    """Hash of every member's name, size and label, in their order."""


@dataclass(frozen=True)
class Manifest:
    """The shards of one dataset, in order."""

    source: str
    """The folder, glob or brace range that was read."""
    shards: tuple[Shard, ...]

    @property
    def num_samples(self) -> int:
        """All samples, held-out ones included."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_held_out(self) -> int:
        """Samples kept for ID validation."""
        return sum(len(shard.held_out) for shard in self.shards)

    @property
    def num_training(self) -> int:
        """Samples that are trained on."""
        return self.num_samples - self.num_held_out

    @property
    def max_label(self) -> int:
        """Largest class label, -1 where samples have none."""
        return max(shard.max_label for shard in self.shards)

    @cached_property
    def content_digest(self) -> str:
        """A hash of which samples these are, wherever they lie."""
        return digest([[shard.num_samples, shard.content_digest, shard.held_out] for shard in self.shards])

    def training_samples(self, shard: int) -> np.ndarray:
        """Positions in a shard of the samples that are trained on, rising, int64 ``[samples]``."""
        held = self.shards[shard]
        return np.setdiff1d(np.arange(held.num_samples), np.asarray(held.held_out, dtype=np.int64))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(
            path,
            json.dumps({"source": self.source, "shards": [asdict(shard) for shard in self.shards]}, indent=1),
        )

    @staticmethod
    def load(path: Path) -> Manifest:
        """Read what :meth:`save` wrote."""
        saved = json.loads(path.read_text())
        shards = (Shard(**shard | {"held_out": tuple(shard["held_out"])}) for shard in saved["shards"])
        return Manifest(saved["source"], tuple(shards))


def index_shards(pattern: str, *, target: Sequence[str], held_out_fraction: float = 0.0) -> Manifest:
    """Read the headers of every shard behind a folder, glob or brace range.

    Args:
        pattern: See :func:`wiseft_dist.storage.expand_shards`.
        target: The field every sample must have beside its image: ``LABEL_FIELDS`` or ``CAPTION_FIELDS``.
        held_out_fraction: Part of the samples, chosen by hash of the key, to be kept from training.

    Raises:
        UserError: naming a shard that is missing, damaged or holds a sample without image or target.
    """
    urls = storage.expand_shards(pattern)
    index = partial(_index_shard, target=tuple(target), held_out_fraction=held_out_fraction)
    shards = []
    bar_of_shards = progress_bar(f"reading {pattern}", total=len(urls), unit="shards")
    with bar_of_shards as bar, ThreadPoolExecutor(INDEX_THREADS) as pool:
        for shard in pool.map(index, urls):
            shards.append(shard)
            bar.advance()
    if not any(shard.num_samples for shard in shards):
        raise UserError(f"{pattern}: its {len(shards)} shards hold no sample.")
    return Manifest(pattern, tuple(shards))


def _index_shard(url: str, *, target: tuple[str, ...], held_out_fraction: float) -> Shard:
    samples: dict[str, set[str]] = {}
    contents: list[tuple[str, int, int]] = []  # of every member: name, bytes, label
    max_label = -1
    try:
        with storage.open_bytes(url) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                key, field = split_name(member.name)
                if key is None or not member.isfile() or _METADATA.match(member.name):
                    continue
                _add_field(samples, key, field, url)
                label = _label(tar, member, url) if field in LABEL_FIELDS else -1
                max_label = max(max_label, label)
                contents.append((member.name, member.size, label))
            _check_end(tar, stream, url)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{url}: not a readable tar file ({error}). Copy this shard again.") from error
    for key, fields in samples.items():
        for needed, name in ((IMAGE_FIELDS, "image"), (target, "target")):
            if fields.isdisjoint(needed):
                raise UserError(f"{url}: sample {key!r} has no {name} (.{', .'.join(needed)}).")
    return Shard(
        url=url,
        num_samples=len(samples),
        max_label=max_label,
        held_out=tuple(index for index, key in enumerate(samples) if _hash_fraction(key) < held_out_fraction),
        content_digest=digest(contents),
    )


def split_name(name: str) -> tuple[str | None, str]:
    """``dir/s0000012.jpg`` to its sample key and field, as webdataset does: at the first dot of the file name.

    Without both, as in ``README`` or ``.DS_Store``, it belongs to no sample: the key is None.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, field = file.partition(".")
    return (folder + slash + stem if stem and dot else None), field.lower()


def _add_field(samples: dict[str, set[str]], key: str, field: str, url: str) -> None:
    """Note a file of a sample; webdataset wants a sample's files side by side and each only once."""
    if key in samples and key != next(reversed(samples)):
        raise UserError(f"{url}: the files of sample {key!r} are not next to each other. Write this shard again.")
    fields = samples.setdefault(key, set())
    if field in fields:
        raise UserError(f"{url}: sample {key!r} has two files .{field}. Write this shard again.")
    fields.add(field)


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, url: str) -> int:
    content = tar.extractfile(member)
    assert content is not None  # isfile() was true
    text = content.read()
    if not text.strip().isdigit():
        raise UserError(f"{url}: label {member.name} holds {text[:20]!r}, not a class number.")
    return int(text)


def _check_end(tar: tarfile.TarFile, stream: IO[bytes], url: str) -> None:
    """A tar file ends with a block of zeros; without it the file was cut, whatever its last sample looks like."""
    stream.seek(tar.offset)
    if stream.read(512) != bytes(512):
        raise UserError(f"{url}: the file ends before its tar archive does. Copy this shard again.")


def _hash_fraction(key: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a sample key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
