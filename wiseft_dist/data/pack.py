"""Writing shards as ``clip-benchmark`` does: ``classnames.txt``, templates, ``SPLIT/{n}.tar``, ``nshards.txt``."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from wiseft_dist.commits import sync

CLASSNAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
COUNT_FILE = "nshards.txt"
SIZES_FILE = "sizes.json"


@dataclass(frozen=True)
class EncodedSample:
    """An image as it will lie in the shard, with its label and, for contrastive training, its caption."""

    image: bytes
    image_format: str
    label: int
    caption: str | None = None


def write_split(samples: Iterable[EncodedSample], folder: Path, *, samples_per_shard: int) -> int:
    """Write samples to ``folder/{n}.tar`` with keys ``s0000000``, ``s0000001``, ...

    Returns:
        How many samples were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = iter(samples)
    num_samples = num_shards = 0
    while group := list(islice(samples, samples_per_shard)):
        write_shard(group, folder / shard_name(num_shards), first_key=num_samples)
        num_samples += len(group)
        num_shards += 1
    (folder / COUNT_FILE).write_text(str(num_shards))
    return num_samples


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"{index}.tar"


def write_shard(samples: Iterable[EncodedSample], path: Path, *, first_key: int) -> int:
    """Write one shard aside, sync it and rename it: under its name it is whole or not there.

    The bytes depend on the samples and ``first_key`` alone: owners are 0, times are 1970, permissions are 0444.

    Returns:
        The shard's size in bytes.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as handle:
            with tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for key, sample in enumerate(samples, first_key):
                    _add(tar, f"s{key:07d}", sample)
            handle.flush()
            os.fsync(handle.fileno())
            num_bytes = handle.tell()
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)
    return num_bytes


def _add(tar: tarfile.TarFile, key: str, sample: EncodedSample) -> None:
    for field, data in _fields(sample):
        member = tarfile.TarInfo(f"{key}.{field}")
        member.size, member.mode = len(data), 0o444
        tar.addfile(member, io.BytesIO(data))


def _fields(sample: EncodedSample) -> Iterator[tuple[str, bytes]]:
    """The sample's files in the order in which they lie in the shard, as webdataset's own writer has them."""
    yield "cls", str(sample.label).encode()
    yield sample.image_format, sample.image
    if sample.caption is not None:
        yield "txt", sample.caption.encode()


def shard_bytes(member_sizes: Iterable[int]) -> int:
    """The size in bytes of a shard whose files have these sizes: a header and whole blocks each, padded at the end."""
    content = sum(member_bytes(size) for size in member_sizes)
    records = -(-(content + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE)
    return records * tarfile.RECORDSIZE


def member_bytes(size: int) -> int:
    """What a file of ``size`` bytes takes in a shard, in bytes."""
    return tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def write_vocabulary(folder: Path, *, classnames: Sequence[str], templates: Sequence[str]) -> None:
    """Write the class names and prompt templates beside the splits."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLASSNAMES_FILE).write_text("\n".join(classnames))
    (folder / TEMPLATES_FILE).write_text("\n".join(templates))
