"""safetensors files written by position: the header is fixed once shapes are known, the data comes in any order."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wiseft_dist.errors import RunError
from wiseft_dist.weights.sources import SAFETENSORS_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
# Widest first, so that data stays aligned.
_FILE_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class FileLayout:
    """A safetensors file before its data is known: the header and where each tensor begins."""

    header: bytes
    offsets: Mapping[str, int]
    """Bytes from the start of the file."""
    num_bytes: int


def safetensors_layout(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> FileLayout:
    """Lay out tensors as the safetensors library does: wide dtypes first, then by name; header padded to 8 bytes."""

    def order(name: str) -> tuple[int, str]:
        return _FILE_ORDER.index(_DTYPE_NAMES[tensors[name][1]]), name

    header: dict[str, Any] = {}
    starts, position = {}, 0
    for name in sorted(tensors, key=order):
        shape, dtype = tensors[name]
        end = position + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        starts[name], position = position, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    offsets = {name: base + start for name, start in starts.items()}
    return FileLayout(len(text).to_bytes(8, "little") + text, offsets, base + position)


class SafetensorsFile:
    """A safetensors file of known layout, written by position."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self._path, self._layout = path, layout
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.posix_fallocate(self._descriptor, 0, layout.num_bytes)
        except OSError as error:
            os.close(self._descriptor)
            raise RunError(f"{path}: no room for {layout.num_bytes / 2**20:.0f} MiB: {error.strerror}.") from error
        self._write(layout.header, 0)

    def write(self, name: str, start: int, elements: Tensor) -> None:
        """Write 1-D elements of a tensor from element ``start`` on."""
        data = elements.contiguous().view(torch.uint8).numpy().data
        self._write(data, self._layout.offsets[name] + start * elements.dtype.itemsize)

    def close(self) -> None:
        """Flush to disk and close."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise RunError(f"{self._path}: writing failed: {error.strerror}.") from error
        finally:
            os.close(self._descriptor)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self._descriptor, view, offset)
            except OSError as error:
                raise RunError(f"{self._path}: writing failed at byte {offset}: {error.strerror}.") from error
            view, offset = view[count:], offset + count
