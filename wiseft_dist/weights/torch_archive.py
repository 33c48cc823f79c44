"""Reading ``torch.save`` archives without trusting them: the pickle may only name the types a checkpoint needs.

Format: an uncompressed zip with one pickle (``*/data.pkl``) that refers to storages by key, and a member
``*/data/KEY`` with the raw bytes of each storage (torch/serialization.py). Tensors come back as places in the file,
so nothing is loaded until it is read.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wiseft_dist.errors import UserError

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StoredTensor(NamedTuple):
    """Where a tensor lies in a file: contiguous elements from a byte offset.

    A named tuple, because a pickle can set the attributes of anything else, and so point it at another file.
    """

    file: Path
    offset: int
    """Of the first element, in bytes."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Opaque:
    """Stands in for an object whose class is known to be harmless and whose content is not needed."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        """Accept and keep whatever the pickle says."""
        self.state = state


class _Storage(NamedTuple):
    file: Path
    offset: int
    numel: int
    dtype: torch.dtype


def read_archive(path: Path) -> Any:
    """The object that was saved, with a :class:`StoredTensor` for every tensor.

    Raises:
        UserError: if the file is not such an archive, is damaged, or names a type that a checkpoint does not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if name is None:
                raise UserError(f"{path}: a zip file, but not one written by torch.save.")
            storages = _Storages(path, archive, name.removesuffix("data.pkl"))
            return _RestrictedUnpickler(io.BytesIO(archive.read(name)), path, storages).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: not a readable torch checkpoint ({error}). Copy or save it again.") from error


class _Storages:
    """Finds the raw bytes of a storage in the zip file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        self._path, self._archive, self._prefix = path, archive, prefix
        self._places: dict[str, tuple[int, int]] = {}

    def locate(self, key: str, dtype: torch.dtype, numel: int) -> _Storage:
        if key not in self._places:
            self._places[key] = self._data_offset(f"{self._prefix}data/{key}")
        offset, num_bytes = self._places[key]
        if numel * dtype.itemsize > num_bytes:
            raise UserError(f"{self._path}: storage {key} claims {numel} elements in {num_bytes} bytes.")
        return _Storage(self._path, offset, numel, dtype)

    def _data_offset(self, member: str) -> tuple[int, int]:
        info = self._archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self._path}: {member} is compressed; torch.save never does that.")
        with self._path.open("rb") as handle:
            handle.seek(info.header_offset)
            header = handle.read(30)  # local file header: name and extra lengths are its last two fields
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        offset = info.header_offset + 30 + name_length + extra_length
        if offset + info.file_size > self._path.stat().st_size:
            raise UserError(f"{self._path}: {member} reaches behind the end of the file.")
        return offset, info.file_size


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, path: Path, storages: _Storages) -> None:
        super().__init__(stream)
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        found = _ALLOWED.get((module, name))
        if found is None:
            raise UserError(f"{self._path}: its pickle asks for {module}.{name}, which no checkpoint needs: refused.")
        return found

    def persistent_load(self, identifier: Any) -> _Storage:
        kind, dtype, key, _location, numel = identifier
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise UserError(f"{self._path}: unknown persistent object {kind!r} in its pickle.")
        return self._storages.locate(str(key), dtype, int(numel))


def _rebuild_tensor(
    storage: _Storage, storage_offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> StoredTensor:
    """In place of ``torch._utils._rebuild_tensor_v2``."""
    size, stride = tuple(map(index, size)), tuple(map(index, stride))
    reach = storage_offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
    if reach > storage.numel or min([storage_offset, *size, *stride], default=0) < 0:
        raise ValueError(f"a tensor of shape {list(size)} reaches outside its storage of {storage.numel} elements")
    return StoredTensor(
        file=storage.file,
        offset=storage.offset + storage_offset * storage.dtype.itemsize,
        shape=size,
        dtype=storage.dtype,
        contiguous=_is_contiguous(size, stride),
    )


def _is_contiguous(size: Sequence[int], stride: Sequence[int]) -> bool:
    if 0 in size:
        return True
    expected = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


def _rebuild_parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


def _rebuild_from_type(
    build: Callable[..., StoredTensor], _type: object, arguments: Any, _state: object
) -> StoredTensor:
    return build(*arguments)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): tuple,
    ("torch", "Tensor"): Opaque,
    ("torch.nn.parameter", "Parameter"): Opaque,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): Opaque,
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): Opaque,
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): Opaque,
    ("deepspeed.utils.tensor_fragment", "fragment_address"): Opaque,
}
