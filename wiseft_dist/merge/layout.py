"""Where every byte of an output lies: safetensors files whose headers are fixed once shapes are known, cut into chunks.

All ensembles of a merge have the same layout. The data of a file begins at a multiple of 4096 bytes, behind a header
that is padded with spaces, and wide dtypes come first: a chunk then never cuts a number, and its place suits O_DIRECT.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wiseft_dist.errors import UserError
from wiseft_dist.merge.direct_io import PAGE
from wiseft_dist.models.files import HEAD_FILE, HEAD_PREFIX, INDEX_FILE, WEIGHTS_FILE
from wiseft_dist.weights.records import TensorRecord
from wiseft_dist.weights.safetensors_files import SAFETENSORS_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_RESERVED_NAME = "__metadata__"
# Widest first, so that data stays aligned.
_FILE_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor's place in a file."""

    name: str
    dtype: torch.dtype
    offset: int
    """Bytes from the start of the file."""
    numel: int

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.offset + self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A safetensors file before its data is known."""

    name: str
    header: bytes
    """What stands before the data, a multiple of 4096 bytes."""
    tensors: tuple[PlacedTensor, ...]
    """By rising offset."""
    num_bytes: int


@dataclass(frozen=True)
class Piece:
    """Consecutive elements ``[start, stop)`` of a tensor."""

    name: str
    dtype: torch.dtype
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class Chunk:
    """Bytes ``[start, stop)`` of a file's data: what one thread reads, mixes and writes at a time."""

    number: int
    file: FileLayout
    start: int
    stop: int

    def pieces(self) -> Iterator[Piece]:
        """The slices of tensors that fill it, one behind the other."""
        tensors = self.file.tensors
        first = bisect.bisect_right(tensors, self.start, key=lambda tensor: tensor.end)
        for tensor in tensors[first:]:
            if tensor.offset >= self.stop:
                return
            low, high = max(self.start, tensor.offset), min(self.stop, tensor.end)
            size = tensor.dtype.itemsize
            if low < high:
                yield Piece(tensor.name, tensor.dtype, (low - tensor.offset) // size, (high - tensor.offset) // size)


def lay_out(
    records: Mapping[str, TensorRecord], *, dtype: torch.dtype, max_shard_bytes: int | None = None
) -> tuple[FileLayout, ...]:
    """The files of one ensemble: open_clip's tensors in one or several, the head's in another.

    Args:
        records: The tensors.
        dtype: Of floating-point tensors; others keep their own.
        max_shard_bytes: Tensors that open_clip knows go to several files where they take more bytes than this; a file
            has more only if it holds a single tensor.

    Raises:
        UserError: if safetensors has no name for a tensor's dtype, or another use for a tensor's name.
    """
    if _RESERVED_NAME in records:
        raise UserError(f"tensor {_RESERVED_NAME}: safetensors files cannot hold one of that name. Save it as another.")
    tensors = {name: (record.shape, _written_dtype(name, record.dtype, dtype)) for name, record in records.items()}
    ordered = sorted(tensors, key=lambda name: (_FILE_ORDER.index(_DTYPE_NAMES[tensors[name][1]]), name))
    model = [name for name in ordered if not name.startswith(HEAD_PREFIX)]
    head = [name for name in ordered if name.startswith(HEAD_PREFIX)]
    shards = _shards({name: _num_bytes(*tensors[name]) for name in model}, max_shard_bytes)
    files = {_shard_name(index, len(shards)): names for index, names in enumerate(shards)}
    if head:
        files[HEAD_FILE] = head
    return tuple(_lay_out_file(file, {name: tensors[name] for name in names}) for file, names in files.items())


def shard_index(files: Sequence[FileLayout]) -> dict[str, bytes]:
    """The file that says which shard holds which tensor, as Hugging Face's libraries write it; none for one file."""
    if all(file.name in (WEIGHTS_FILE, HEAD_FILE) for file in files):
        return {}
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    total = sum(tensor.end - tensor.offset for file in files for tensor in file.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return {INDEX_FILE: json.dumps(index, indent=1).encode()}


def cut(files: Sequence[FileLayout], chunk_bytes: int) -> list[Chunk]:
    """All files' data in chunks of ``chunk_bytes``, a multiple of 4096; the last of a file may be shorter."""
    ranges = [
        (file, start, min(start + chunk_bytes, file.num_bytes))
        for file in files
        for start in range(len(file.header), file.num_bytes, chunk_bytes)
    ]
    return [Chunk(number, file, start, stop) for number, (file, start, stop) in enumerate(ranges)]


def _written_dtype(name: str, stored: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    written = wanted if stored.is_floating_point else stored
    if written not in _DTYPE_NAMES:
        raise UserError(
            f"tensor {name} is of {stored}, which is not merged: leave it out, or save it as another dtype."
        )
    return written


def _num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _shards(sizes: Mapping[str, int], limit: int | None) -> list[list[str]]:
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not shards or (limit is not None and filled + size > limit):
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_name(index: int, num_shards: int) -> str:
    return WEIGHTS_FILE if num_shards == 1 else f"model-{index + 1:05d}-of-{num_shards:05d}.safetensors"


def _lay_out_file(file: str, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> FileLayout:
    """The format: 8 bytes of header length, a JSON header that may end in spaces, the data without holes."""
    header: dict[str, Any] = {}
    ends, position = {}, 0
    for name, (shape, dtype) in tensors.items():
        start, position = position, position + _num_bytes(shape, dtype)
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, position]}
        ends[name] = position
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    base = 8 + len(text)
    placed = tuple(
        PlacedTensor(name, dtype, base + ends[name] - _num_bytes(shape, dtype), torch.Size(shape).numel())
        for name, (shape, dtype) in tensors.items()
    )
    return FileLayout(file, len(text).to_bytes(8, "little") + text, placed, base + position)
