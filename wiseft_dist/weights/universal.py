"""DeepSpeed's universal checkpoints: a file for each parameter, and the ranks' model files as they were.

Source: deepspeed/checkpoint/ds_to_universal.py (0.19.8). ``zero/PARAMETER/fp32.pt`` holds a shaped tensor under
``param`` where it comes from stage 1 or 2, and a flat one where it comes from stage 3.
"""

from __future__ import annotations

import math
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from typing import Any

from wiseft_dist.errors import UserError
from wiseft_dist.weights.places import LOOKING_THREADS, File, Folder
from wiseft_dist.weights.records import Origin, TensorRecord, Weights, stored_record
from wiseft_dist.weights.stored_tensor import StoredTensor
from wiseft_dist.weights.torch_archive import read_archive
from wiseft_dist.weights.zero import MASTERS, understood, whole_model
from wiseft_dist.weights.zero_files import ZeroFiles, read_universal_files

Shape = tuple[int, ...]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What DeepSpeed's conversion keeps of an optimizer."""


def open_universal(folder: Folder) -> Weights:
    """Open the weights: trained parameters in fp32, frozen ones and buffers in the dtype they were saved in.

    Raises:
        UserError: if a parameter's file is missing or damaged, or holds another shape.
        RunError: if a store fails for good.
    """
    return understood(folder, lambda: _open(read_universal_files(folder)))


def _open(files: ZeroFiles) -> Weights:
    shapes = {name: tuple(shape) for group in files.models[0]["param_shapes"] for name, shape in group.items()}
    names = list(shapes)
    found = files.folder.look_up(_file(name, state) for name in names for state in (MASTERS, *MOMENTS))
    if missing := [name for name in names if _file(name, MASTERS) not in found]:
        raise UserError(f"{files.folder}: {_file(missing[0], MASTERS)} is missing, and {len(missing) - 1} more.")
    masters = [found[_file(name, MASTERS)] for name in names]
    with ThreadPool(LOOKING_THREADS) as pool:
        records = pool.starmap(_record, zip(names, masters, shapes.values(), strict=True))
    states = tuple(state for state in MOMENTS if any(_file(name, state) in found for name in names))
    origin = Origin(f"DeepSpeed universal checkpoint of {files.kind.removeprefix('DeepSpeed ')}", files.step, states)
    return whole_model(files, dict(zip(names, records, strict=True)), origin)


def _file(name: str, state: str) -> str:
    return f"zero/{name}/{state}.pt"


def _record(name: str, file: File, shape: Shape) -> TensorRecord:
    saved: Any = read_archive(file)
    tensor = saved.get("param") if isinstance(saved, dict) else saved
    if not isinstance(tensor, StoredTensor):
        raise UserError(f"{file}: holds no parameter.")
    if tensor.shape not in (shape, (math.prod(shape),)):
        raise UserError(f"{file}: holds shape {list(tensor.shape)} of a parameter of shape {list(shape)}.")
    return replace(stored_record(name, tensor), shape=shape)
