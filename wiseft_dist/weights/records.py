"""Weights as named slices: every format becomes a list of places in files, read by position and never loaded whole."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from wiseft_dist import storage
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.storage import StoredObject
from wiseft_dist.weights import places
from wiseft_dist.weights.descriptors import Descriptors
from wiseft_dist.weights.places import File
from wiseft_dist.weights.stored_tensor import StoredTensor

_DESCRIPTORS = Descriptors()
"""Of the whole process, which is what the system counts."""


@dataclass(frozen=True)
class Extent:
    """Consecutive elements in a file."""

    file: File
    offset: int
    """Bytes from the start of the file."""
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the extents that, joined, are its elements in row-major order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    extents: tuple[Extent, ...]
    divisor: float = 1.0
    """What reading divides the stored elements by: a moving average that started from nothing is too small."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Origin:
    """What a checkpoint is, beyond its tensors."""

    kind: str
    """For people: ``DeepSpeed ZeRO stage 2, 8 ranks``."""
    step: int | None = None
    """Optimizer steps before it was saved, if it says so."""
    states: tuple[str, ...] = ()
    """What it holds of the optimizer beside the weights."""


class Weights(Mapping[str, TensorRecord]):
    """The tensors of one model. Use as a context manager: files stay open inside it."""

    def __init__(
        self, source: str, records: Mapping[str, TensorRecord], origin: Origin = Origin("named tensors")
    ) -> None:
        self.source, self.origin = source, origin
        self._records = dict(records)
        self._owner = object()
        for name, record in self._records.items():
            if not all(isinstance(extent.file, Path | StoredObject) for extent in record.extents):
                raise UserError(f"{source}: tensor {name} lies in something that is no file; refused.")
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
        _DESCRIPTORS.close(self._owner)

    def files(self) -> list[File]:
        """The files that hold the tensors, sorted."""
        return sorted({extent.file for record in self._records.values() for extent in record.extents}, key=str)

    def fingerprint(self) -> dict[str, dict[str, int | str]]:
        """By file, what tells it from one that was changed: its size, and its time or the store's version of it."""
        return {str(file): places.fingerprint(file) for file in self.files()}

    def locate(self, name: str, element: int) -> str:
        """The file that holds an element of a tensor, counted in row-major order."""
        end = 0
        for extent in self[name].extents:
            end += extent.numel
            if element < end:
                return str(extent.file)
        raise IndexError(f"{name} has {end} elements, and no element {element}")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The elements ``[start, stop)`` of a tensor in row-major order, 1-D, in the stored dtype."""
        record = self[name]
        elements = torch.empty((record.numel if stop is None else stop) - start, dtype=record.dtype)
        self.read_into(name, start, elements)
        return elements

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        """Fill ``out`` with a tensor's elements from ``start`` on. May be called from several threads.

        Args:
            name: The tensor.
            start: The first element, in row-major order.
            out: 1-D and contiguous, in the stored dtype, on the host.

        Raises:
            UserError: if a file is shorter than it was, or a remote one was replaced.
            RunError: if the disk, or a store for good, does not deliver.
        """
        record, stop = self[name], start + out.numel()
        size = record.dtype.itemsize
        view = out.view(torch.uint8).numpy().data
        filled = begin = 0
        for extent in record.extents:
            low, high = max(start, begin), min(stop, begin + extent.numel)
            if low < high:
                num_bytes = (high - low) * size
                self._pread(extent.file, extent.offset + (low - begin) * size, view[filled : filled + num_bytes])
                filled += num_bytes
            begin += extent.numel
        if record.divisor != 1.0:
            out.div_(record.divisor)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its shape."""
        return self.read(name).reshape(self[name].shape)

    def _pread(self, file: File, offset: int, view: memoryview) -> None:
        if not isinstance(file, Path):
            storage.read_range(file, offset, view)
            return
        try:
            with _DESCRIPTORS.reading(self._owner, file) as descriptor:
                while view:
                    count = os.preadv(descriptor, [view], offset)
                    if count == 0:
                        raise UserError(
                            f"{file}: ends at byte {offset}, in the middle of a tensor. Copy or save it again."
                        )
                    view, offset = view[count:], offset + count
        except OSError as error:
            raise RunError(f"{file}: cannot be read at byte {offset}: {error.strerror}.") from error


def stored_record(name: str, tensor: StoredTensor) -> TensorRecord:
    """The record of a tensor of a torch archive."""
    if not tensor.contiguous:
        raise UserError(f"{tensor.file}: tensor {name} is stored transposed. Save it again with `.contiguous()`.")
    extent = Extent(tensor.file, tensor.offset, tensor.numel)
    return TensorRecord(tensor.shape, tensor.dtype, (extent,))
