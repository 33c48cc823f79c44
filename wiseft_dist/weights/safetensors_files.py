"""safetensors: headers that are not believed, and models that an index spreads over several files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from operator import index
from typing import Any

import torch

from wiseft_dist.errors import UserError
from wiseft_dist.weights.places import File, Folder, open_file, read_text, size_of
from wiseft_dist.weights.records import Extent, Origin, TensorRecord, Weights

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
UNSUPPORTED_DTYPES = (
    *("U16", "U32", "U64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2"),
    "F4",
)
"""What the format has and merging has not."""
LONGEST_HEADER = 100_000_000
"""Bytes, as in the reference library."""
INDEX_SUFFIX = ".safetensors.index.json"


def open_safetensors(files: Iterable[File], *, source: str | None = None) -> Weights:
    """Open safetensors files that together are one model.

    Args:
        files: Each with tensors that no other has.
        source: What messages call the model; left out, its file or their folder.

    Raises:
        UserError: if a file is damaged, or a tensor is in two.
        RunError: if a store fails for good.
    """
    files = list(files)
    headers = {file: read_safetensors_header(file) for file in files}
    records: dict[str, TensorRecord] = {}
    for file, found in headers.items():
        if twice := found.keys() & records.keys():
            raise UserError(f"{file}: tensor {min(twice)} is in another file of the same model too.")
        records |= found
    many = f", {len(files)} files" if len(files) > 1 else ""
    place = str(files[0]) if len(files) == 1 else str(files[0]).rpartition("/")[0]
    return Weights(source or place, records, Origin(f"safetensors{many}"))


def open_indexed(folder: Folder, index_name: str) -> Weights:
    """Open the files that an index names.

    Raises:
        UserError: if a file is missing or damaged, or the index lists tensors that are not where it says.
        RunError: if a store fails for good.
    """
    listed = _read_index(folder.needed(index_name))
    files = {name: folder.needed(name) for name in sorted(set(listed.values()))}
    weights = open_safetensors(files.values(), source=str(folder))
    held = {name: record.extents[0].file if record.extents else None for name, record in weights.items()}
    if wrong := [name for name in sorted(listed) if held.get(name, "") not in (files[listed[name]], None)]:
        raise UserError(f"{folder}/{index_name}: lists {wrong[0]} in {listed[wrong[0]]}, which does not hold it.")
    if unlisted := sorted(held.keys() - listed.keys()):
        raise UserError(f"{folder}/{index_name}: does not list {unlisted[0]}, which is in one of its files.")
    return weights


def _read_index(file: File) -> dict[str, str]:
    """By tensor, the name of its file."""
    try:
        listed: Mapping[str, str] = json.loads(read_text(file))["weight_map"]
        if any("/" in name or not name.endswith(".safetensors") for name in listed.values()):
            raise ValueError("it names a file that is no *.safetensors beside it")
        return dict(listed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a readable index of safetensors files ({error}).") from error


def read_safetensors_header(file: File) -> dict[str, TensorRecord]:
    """The tensors of one file. Format: 8 bytes of header length, a JSON header, the data.

    Raises:
        UserError: if the header is damaged or claims data that is not there.
        RunError: if a store fails for good.
    """
    try:
        size = size_of(file)
        with open_file(file) as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("the file is shorter than its header says")
            if length > LONGEST_HEADER:
                raise ValueError(f"its header has {length:,} bytes, and the format allows {LONGEST_HEADER:,}")
            header: dict[str, Any] = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] in UNSUPPORTED_DTYPES:
                raise UserError(
                    f"{file}: dtype {entry['dtype']} of tensor {name} is not supported; convert it to one of "
                    f"{', '.join(SAFETENSORS_DTYPES)}."
                )
        _check_tiling([entry["data_offsets"] for entry in header.values()], size - 8 - length)
        return {name: _safetensors_record(file, 8 + length, entry) for name, entry in header.items()}
    except UserError:
        raise
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


def _safetensors_record(file: File, base: int, entry: dict[str, Any]) -> TensorRecord:
    begin, end = map(index, entry["data_offsets"])
    shape, dtype = tuple(map(index, entry["shape"])), SAFETENSORS_DTYPES[entry["dtype"]]
    numel = math.prod(shape)
    if min(shape, default=0) < 0 or end - begin != numel * dtype.itemsize:
        raise ValueError(f"a tensor of shape {list(shape)} in {end - begin} bytes")
    return TensorRecord(shape, dtype, (Extent(file, base + begin, numel),))
