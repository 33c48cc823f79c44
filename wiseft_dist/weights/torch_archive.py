"""Reading ``torch.save`` archives without trusting them: the pickle may only name the types a checkpoint needs.

Format: an uncompressed zip with one pickle (``*/data.pkl``) that refers to storages by key, and a member
``*/data/KEY`` with the raw bytes of each storage (torch/serialization.py). Tensors come back as places in the file,
so nothing is loaded until it is read.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.weights.places import LOOKING_THREADS, File, open_file, read_bytes, size_of
from wiseft_dist.weights.stored_tensor import StoredTensor
from wiseft_dist.weights.torchscript import Scripted, is_scripted, scripted_class, scripted_state

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
LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:-1]
"""How files of torch before 1.6 begin: the pickle of a number (torch/serialization.py, ``MAGIC_NUMBER``)."""
LOCAL_HEADER = 30
"""Bytes of a zip member's own header, before its name; the lengths of name and padding are the last two fields."""
LARGEST_CODE = 2**24
"""Bytes of a TorchScript source that is still read."""


class Opaque:
    """Stands in for an object whose class is known to be harmless and whose content is not needed."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        """Accept and keep whatever the pickle says."""
        self.state = state


class _Storage(NamedTuple):
    file: File
    offset: int
    numel: int
    dtype: torch.dtype


def read_archive(path: File) -> Any:
    """The object that was saved, with a :class:`StoredTensor` for every tensor; of a TorchScript module its state dict.

    Raises:
        UserError: if the file is not such an archive, is damaged, or names a type that a checkpoint does not need.
        RunError: if a store fails for good.
    """
    try:
        with open_file(path) as handle:
            if handle.read(len(LEGACY_START)) == LEGACY_START:
                raise UserError(
                    f"{path}: is in the format of torch before 1.6, which cannot be read by position; "
                    "if you trust it, load it with torch.load(..., weights_only=True) and torch.save it again."
                )
            with zipfile.ZipFile(handle) as archive:
                return _read(path, archive)
    except (UserError, RunError):
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: not a readable torch checkpoint ({error}). Copy or save it again.") from error


def _read(path: File, archive: zipfile.ZipFile) -> Any:
    pickled = next((info for info in archive.infolist() if info.filename.endswith("/data.pkl")), None)
    if pickled is None:
        raise UserError(f"{path}: a zip file, but not one written by torch.save.")
    _check_stored(path, pickled)
    prefix = pickled.filename.removesuffix("data.pkl")
    saved = _RestrictedUnpickler(io.BytesIO(archive.read(pickled)), path, _Storages(path, archive, prefix)).load()
    if not isinstance(saved, Scripted):
        return saved
    code = {info.filename: info for info in archive.infolist() if info.file_size <= LARGEST_CODE}

    def read_code(module: str) -> str | None:
        info = code.get(f"{prefix}code/{module.replace('.', '/')}.py")
        return None if info is None else archive.read(info).decode()

    return scripted_state(saved, read_code)


def _check_stored(path: File, info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path}: {info.filename} is compressed; torch.save never does that.")


class _Storages:
    """Finds the raw bytes of a storage in the zip file."""

    def __init__(self, path: File, archive: zipfile.ZipFile, prefix: str) -> None:
        self._path, self._archive, self._prefix = path, archive, prefix
        self._places: dict[str, tuple[int, int]] = {}
        if not isinstance(path, Path):
            self._ask_for_all()

    def locate(self, key: str, dtype: torch.dtype, numel: int) -> _Storage:
        member = f"{self._prefix}data/{key}"
        if member not in self._places:
            self._places[member] = self._data_offset(member)
        offset, num_bytes = self._places[member]
        if numel * dtype.itemsize > num_bytes:
            raise UserError(f"{self._path}: storage {key} claims {numel} elements in {num_bytes} bytes.")
        return _Storage(self._path, offset, numel, dtype)

    def _ask_for_all(self) -> None:
        """Many requests at a time, where each is one over a network."""
        members = [name for name in self._archive.namelist() if name.startswith(f"{self._prefix}data/")]
        with ThreadPool(LOOKING_THREADS) as pool:
            self._places.update(zip(members, pool.map(self._data_offset, members), strict=True))

    def _data_offset(self, member: str) -> tuple[int, int]:
        """The start and length of a member's data. The directory may lie about where it is: its own header is asked."""
        info = self._archive.getinfo(member)
        _check_stored(self._path, info)
        name = member.encode()
        header = read_bytes(self._path, info.header_offset, LOCAL_HEADER + len(name))
        if header[:4] != b"PK\3\4" or header[LOCAL_HEADER:] != name:
            raise UserError(f"{self._path}: {member} is not where the archive's directory says. Copy or save it again.")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        offset = info.header_offset + LOCAL_HEADER + name_length + extra_length
        if offset + info.file_size > size_of(self._path):
            raise UserError(f"{self._path}: {member} reaches behind the end of the file.")
        return offset, info.file_size


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, path: File, storages: _Storages) -> None:
        super().__init__(stream)
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if is_scripted(module):
            return scripted_class(module, name)
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


def _first(value: Any, *_: object) -> Any:
    """In place of what only wraps its first argument: a parameter, or TorchScript's tags of types."""
    return value


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
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): Opaque,
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): Opaque,
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): Opaque,
    ("deepspeed.utils.tensor_fragment", "fragment_address"): Opaque,
}
