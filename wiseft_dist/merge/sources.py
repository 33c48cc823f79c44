"""Weights as named slices: every format becomes a list of places in files, read by position and never loaded whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from wiseft_dist.errors import UserError
from wiseft_dist.merge.torch_archive import StoredTensor, read_archive

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Extent:
    """Consecutive elements in a file."""

    file: Path
    offset: int
    """Bytes from the start of the file."""
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the extents that, joined, are its elements in row-major order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    extents: tuple[Extent, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class Weights(Mapping[str, TensorRecord]):
    """The tensors of one model. Use as a context manager: files stay open inside it."""

    def __init__(self, source: str, records: Mapping[str, TensorRecord]) -> None:
        self.source = source
        self._records = dict(records)
        self._descriptors: dict[Path, int] = {}
        for name, record in self._records.items():
            held = sum(extent.numel for extent in record.extents)
            if held != record.numel:
                raise UserError(
                    f"{source}: tensor {name} has shape {list(record.shape)}, but {held} of {record.numel} elements."
                )

    def __getitem__(self, name: str) -> TensorRecord:
        return self._records[name]

    def __iter__(self) -> Any:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def files(self) -> list[Path]:
        """The files that hold the tensors, sorted."""
        return sorted({extent.file for record in self._records.values() for extent in record.extents})

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The elements ``[start, stop)`` of a tensor in row-major order, 1-D, in the stored dtype."""
        record = self[name]
        stop = record.numel if stop is None else stop
        size = record.dtype.itemsize
        buffer = bytearray((stop - start) * size)
        view, filled, begin = memoryview(buffer), 0, 0
        for extent in record.extents:
            low, high = max(start, begin), min(stop, begin + extent.numel)
            if low < high:
                num_bytes = (high - low) * size
                self._pread(extent.file, extent.offset + (low - begin) * size, view[filled : filled + num_bytes])
                filled += num_bytes
            begin += extent.numel
        return torch.frombuffer(buffer, dtype=record.dtype) if buffer else torch.empty(0, dtype=record.dtype)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its shape."""
        return self.read(name).reshape(self[name].shape)

    def _pread(self, file: Path, offset: int, view: memoryview) -> None:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY)
        while view:
            count = os.preadv(self._descriptors[file], [view], offset)
            if count == 0:
                raise UserError(f"{file}: ends at byte {offset}, in the middle of a tensor. Copy or save it again.")
            view, offset = view[count:], offset + count


def open_weights(path: Path | str) -> Weights:
    """Open anything people have: a safetensors file or folder, a ``torch.save`` file, a DeepSpeed checkpoint.

    Raises:
        UserError: if nothing is there or it is no such thing.
    """
    from wiseft_dist.merge.zero import is_zero_checkpoint, open_zero

    path = Path(path)
    if path.is_dir():
        if is_zero_checkpoint(path):
            return open_zero(path)
        files = _safetensors_of(path)
        if not files:
            raise UserError(f"{path}: neither a DeepSpeed checkpoint nor a folder with *.safetensors.")
        return open_safetensors(files)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint.")
    if path.suffix == ".safetensors":
        return open_safetensors([path])
    return open_torch_file(path)


def _safetensors_of(folder: Path) -> list[Path]:
    """The files of a model folder: those its index names, else all of them."""
    index_file = next(iter(folder.glob(f"*{INDEX_SUFFIX}")), None)
    if index_file is None:
        return sorted(folder.glob("*.safetensors"))
    try:
        return sorted({folder / name for name in json.loads(index_file.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index_file}: not a readable index of safetensors files ({error}).") from error


def open_safetensors(files: Iterable[Path]) -> Weights:
    """Open safetensors files that together are one model."""
    files = list(files)
    records: dict[str, TensorRecord] = {}
    for file in files:
        found = read_safetensors_header(file)
        if twice := found.keys() & records.keys():
            raise UserError(f"{file}: tensor {min(twice)} is in another file of the same model too.")
        records |= found
    return Weights(str(files[0] if len(files) == 1 else files[0].parent), records)


def read_safetensors_header(file: Path) -> dict[str, TensorRecord]:
    """The tensors of one file. Format: 8 bytes of header length, a JSON header, the data.

    Raises:
        UserError: if the header is damaged or claims data that is not there.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("the file is shorter than its header says")
            header: dict[str, Any] = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        _check_tiling([entry["data_offsets"] for entry in header.values()], size - 8 - length)
        return {name: _safetensors_record(file, 8 + length, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error}). Copy or save it again.") from error


def _check_tiling(offsets: list[tuple[int, int]], num_bytes: int) -> None:
    """The format wants the tensors to follow each other without holes, from the first byte to the last."""
    position = 0
    for begin, end in sorted(offsets):
        if begin != position or end < begin:
            raise ValueError(f"a tensor at bytes {begin} to {end}, where one at {position} should follow")
        position = end
    if position != num_bytes:
        raise ValueError(f"{num_bytes} bytes of data, where its header describes {position}")


def _safetensors_record(file: Path, base: int, entry: dict[str, Any]) -> TensorRecord:
    begin, end = map(index, entry["data_offsets"])
    shape, dtype = tuple(map(index, entry["shape"])), SAFETENSORS_DTYPES[entry["dtype"]]
    numel = math.prod(shape)
    if min(shape, default=0) < 0 or end - begin != numel * dtype.itemsize:
        raise ValueError(f"a tensor of shape {list(shape)} in {end - begin} bytes")
    return TensorRecord(shape, dtype, (Extent(file, base + begin, numel),))


def open_torch_file(path: Path) -> Weights:
    """Open a state dict saved by torch, plain or under ``state_dict``, with or without ``module.`` prefixes."""
    saved = read_archive(path)
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    tensors = {k: v for k, v in saved.items() if isinstance(v, StoredTensor)} if isinstance(saved, dict) else {}
    if not tensors:
        raise UserError(f"{path}: holds no state dict.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Weights(str(path), {name: stored_record(name, tensor) for name, tensor in tensors.items()})


def stored_record(name: str, tensor: StoredTensor) -> TensorRecord:
    """The record of a tensor of a torch archive."""
    if not tensor.contiguous:
        raise UserError(f"{tensor.file}: tensor {name} is stored transposed. Save it again with `.contiguous()`.")
    extent = Extent(tensor.file, tensor.offset, tensor.numel)
    return TensorRecord(tensor.shape, tensor.dtype, (extent,))
