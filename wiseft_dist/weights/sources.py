"""Opening anything people have: safetensors, ``torch.save`` files and DeepSpeed checkpoints, as named slices."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from operator import index
from pathlib import Path
from typing import Any

import torch

from wiseft_dist.errors import UserError
from wiseft_dist.weights.average import open_average
from wiseft_dist.weights.records import Extent, TensorRecord, Weights, stored_record
from wiseft_dist.weights.torch_archive import StoredTensor, read_archive
from wiseft_dist.weights.zero import open_zero
from wiseft_dist.weights.zero_files import is_zero_checkpoint

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


def open_weights(path: Path | str, *, average: bool = False) -> Weights:
    """Open anything people have: a safetensors file or folder, a ``torch.save`` file, a DeepSpeed checkpoint.

    Args:
        path: A file or folder.
        average: Of a run's checkpoint, take the moving average of the weights instead of the last ones.

    Raises:
        UserError: if nothing is there, it is no such thing, or it holds no average.
    """
    path = Path(path)
    if average:
        return open_average(path)
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
