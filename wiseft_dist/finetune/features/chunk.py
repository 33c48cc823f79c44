"""A file with the features of consecutive samples: written as a whole or not at all, mapped into memory when read."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wiseft_dist.commits import sync
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.errors import RunError

_TENSORS = ("features", "labels", "keys")


@dataclass(frozen=True)
class FeatureChunk:
    """Row ``i`` belongs to the ``i``-th of the samples."""

    features: Tensor
    """fp32 ``[samples, embedding]``; zeros for a sample that could not be used."""
    labels: Tensor
    """int64 ``[samples]``."""
    keys: Tensor
    """UTF-8, filled up with zeros: uint8 ``[samples, width]``."""
    bad: tuple[BadSample, ...]
    """Samples that could not be used, by their positions in the dataset."""


def encode_keys(keys: Sequence[str]) -> Tensor:
    """Keys as uint8 ``[samples, width]``."""
    encoded = [key.encode() for key in keys]
    width = max(1, *map(len, encoded))
    filled = bytearray(b"".join(key.ljust(width, b"\0") for key in encoded))
    return torch.frombuffer(filled, dtype=torch.uint8).reshape(len(keys), width)


def decode_keys(rows: np.ndarray) -> tuple[str, ...]:
    """The keys of :func:`encode_keys`, or of some of its rows."""
    return tuple(row.tobytes().rstrip(b"\0").decode() for row in rows)


def write_chunk(path: Path, chunk: FeatureChunk) -> None:
    """Write a chunk in place of whatever has its name; runs that share a folder may do so at the same time.

    Raises:
        RunError: if the file system refuses.
    """
    tensors = {name: getattr(chunk, name) for name in _TENSORS}
    bad = json.dumps([asdict(entry) for entry in chunk.bad])
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, aside, metadata={"bad": bad, "sha256": _sha256(tensors, bad)})
        sync(aside)
        aside.rename(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: features cannot be written: {error}. Make room, or name another folder with finetune.features."
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()


def read_chunk(path: Path) -> FeatureChunk:
    """A chunk whose rows are read from the file when they are used.

    Raises:
        RunError: if the file is missing or torn.
    """
    try:
        tensors, metadata = _read(path)
        return FeatureChunk(**tensors, bad=tuple(BadSample(**entry) for entry in json.loads(metadata["bad"])))
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path}: features are missing or damaged; resume to compute them again: {error}") from error


def is_whole(path: Path) -> bool:
    """Whether the file is there and every byte of it is as it was written. Reads all of it."""
    try:
        tensors, metadata = _read(path)
        return metadata["sha256"] == _sha256(tensors, metadata["bad"])
    except (OSError, SafetensorError, KeyError):
        return False


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in _TENSORS}, file.metadata() or {}


def _sha256(tensors: Mapping[str, Tensor], bad: str) -> str:
    hashed = hashlib.sha256(bad.encode())
    for name in _TENSORS:
        hashed.update(f"{name} {tuple(tensors[name].shape)}".encode())
        hashed.update(tensors[name].numpy().data)
    return hashed.hexdigest()
