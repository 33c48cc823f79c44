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
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.weights.places import LOOKING_THREADS, File, open_file, read_bytes, size_of
from wiseft_dist.weights.torchscript import Scripted, scripted_state
from wiseft_dist.weights.unpickling import RestrictedUnpickler, Storage

LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:-1]
"""How files of torch before 1.6 begin: the pickle of a number (torch/serialization.py, ``MAGIC_NUMBER``)."""
LOCAL_HEADER = 30
"""Bytes of a zip member's own header, before its name; the lengths of name and padding are the last two fields."""
LARGEST_CODE = 2**24
"""Bytes of a TorchScript source that is still read."""


def read_archive(path: File) -> Any:
    """The object that was saved, with a `StoredTensor` for every tensor; of a TorchScript module its state dict.

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
    _check_byte_order(path, archive, f"{prefix}byteorder")
    saved = RestrictedUnpickler(io.BytesIO(archive.read(pickled)), path, _Storages(path, archive, prefix).locate).load()
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


def _check_byte_order(path: File, archive: zipfile.ZipFile, member: str) -> None:
    """The order of the bytes in a number; older versions of torch do not write it."""
    if member not in archive.namelist():
        return
    info = archive.getinfo(member)
    _check_stored(path, info)
    if archive.read(info) != b"little":
        raise UserError(
            f"{path}: was not saved in little-endian order; load it with torch on a little-endian machine, "
            "and torch.save it there."
        )


class _Storages:
    """Finds the raw bytes of a storage in the zip file."""

    def __init__(self, path: File, archive: zipfile.ZipFile, prefix: str) -> None:
        self._path, self._archive, self._prefix = path, archive, prefix
        self._places: dict[str, tuple[int, int]] = {}
        if not isinstance(path, Path):
            self._ask_for_all()

    def locate(self, key: str, dtype: torch.dtype, numel: int) -> Storage:
        member = f"{self._prefix}data/{key}"
        if member not in self._places:
            self._places[member] = self._data_offset(member)
        offset, num_bytes = self._places[member]
        if numel * dtype.itemsize > num_bytes:
            raise UserError(f"{self._path}: storage {key} claims {numel} elements in {num_bytes} bytes.")
        return Storage(self._path, offset, numel, dtype)

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
