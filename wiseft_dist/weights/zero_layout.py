"""Where each parameter's elements lie in the ranks' flat partitions, at every stage of ZeRO.

Sources of the layout: deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, deepspeed/utils/zero_to_fp32.py
(0.19.8). Padding, which is uninitialised memory, is never part of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wiseft_dist.errors import UserError
from wiseft_dist.weights.places import Folder
from wiseft_dist.weights.records import Extent, TensorRecord
from wiseft_dist.weights.stored_tensor import StoredTensor
from wiseft_dist.weights.zero_files import ZeroFiles

Shape = tuple[int, ...]


def cut(files: ZeroFiles, partitions: Callable[[int], Sequence[Any]]) -> dict[str, TensorRecord]:
    """The trained parameters' slices of masters, moments or averages, at stage 1, 2 or 3.

    Args:
        files: For the shapes.
        partitions: From the number of a group (stage 3: sub-group) to every rank's flat partition of it.

    Raises:
        UserError: if a partition has not the size that its parameters need.
    """
    records: dict[str, TensorRecord] = {}
    for group, shapes in enumerate(_shapes(files.models[0])):
        parts = [_stored(part, files.folder) for part in partitions(group)]
        if files.stage == 3:
            records |= _cut_over_ranks(files.folder, shapes, parts)
        else:
            paddings = _paddings(files.optimizers[0], group, len(shapes))
            records |= _cut_at_partitions(files.folder, shapes, paddings, parts)
    return records


def num_groups(files: ZeroFiles) -> int:
    """Groups of parameters, at stage 3 sub-groups: each has one flat partition on every rank."""
    return len(_shapes(files.models[0]))


def frozen_fragments(files: ZeroFiles) -> dict[str, TensorRecord]:
    """Frozen parameters of stage 3: a fragment of each, with padding, in every rank's model file."""
    records: dict[str, TensorRecord] = {}
    for name, shape in (files.models[0].get("frozen_param_shapes") or {}).items():
        parts = [_stored(model["frozen_param_fragments"][name], files.folder) for model in files.models]
        records |= _cut_over_ranks(files.folder, {name: tuple(shape)}, parts)
    return records


def _shapes(model: Mapping[str, Any]) -> list[dict[str, Shape]]:
    """Names and shapes of the trained parameters of each group, in the order in which they are laid out."""
    return [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]


def _paddings(state: Mapping[str, Any], group: int, count: int) -> list[int]:
    """Elements of padding after each parameter (``param_alignment_paddings``, since DeepSpeed 0.19.7)."""
    paddings = state.get("param_alignment_paddings")
    return [int(p) for p in paddings[group]] if paddings else [0] * count


def _cut_at_partitions(
    folder: Folder, shapes: Mapping[str, Shape], paddings: Sequence[int], parts: Sequence[StoredTensor]
) -> dict[str, TensorRecord]:
    """Stages 1 and 2: a group is one flat vector, cut into equal partitions.

    With N elements in a group (parameters and their alignment padding) and W ranks, a partition has
    P = 2 ceil(N / 2W) elements and rank r holds [rP, (r+1)P); a parameter may straddle ranks. Masters are saved
    without the padding behind N, the optimizer's state with it.
    """
    total = sum(math.prod(shape) for shape in shapes.values()) + sum(paddings)
    partition = 2 * math.ceil(total / (2 * len(parts)))
    held = [max(0, min(partition, total - rank * partition)) for rank in range(len(parts))]
    _check_parts(folder, parts, held, padded=partition)
    records, begin = {}, 0
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        end = begin + math.prod(shape)
        bounds = [
            (max(begin - rank * partition, 0), min(end - rank * partition, partition)) for rank in range(len(parts))
        ]
        extents = tuple(_slice(part, *bound) for part, bound in zip(parts, bounds, strict=True) if bound[0] < bound[1])
        records[name] = TensorRecord(shape, parts[0].dtype, extents)
        begin = end + padding
    return records


def _cut_over_ranks(
    folder: Folder, shapes: Mapping[str, Shape], parts: Sequence[StoredTensor]
) -> dict[str, TensorRecord]:
    """Stage 3: every parameter is cut over all ranks; the parameters of a sub-group are laid end to end.

    A parameter of n elements takes p = ceil(n / W) in every rank's vector; rank r holds [rp, min((r+1)p, n)).
    """
    shares = {name: math.ceil(math.prod(shape) / len(parts)) for name, shape in shapes.items()}
    _check_parts(folder, parts, [sum(shares.values())] * len(parts))
    records, begin = {}, 0
    for name, shape in shapes.items():
        held = [max(0, min(shares[name], math.prod(shape) - rank * shares[name])) for rank in range(len(parts))]
        extents = tuple(_slice(part, begin, begin + count) for part, count in zip(parts, held, strict=True) if count)
        records[name] = TensorRecord(shape, parts[0].dtype, extents)
        begin += shares[name]
    return records


def _stored(tensor: Any, folder: Folder) -> StoredTensor:
    if not isinstance(tensor, StoredTensor) or not tensor.contiguous:
        raise UserError(f"{folder}: a partition is not a plain tensor.")
    return tensor


def _check_parts(
    folder: Folder, parts: Sequence[StoredTensor], expected: Sequence[int], *, padded: int | None = None
) -> None:
    """Another size would mean another layout, and elements taken from the wrong places."""
    for rank, (part, count) in enumerate(zip(parts, expected, strict=True)):
        if part.dtype != parts[0].dtype:
            raise UserError(f"{folder}: rank {rank}'s partition is {part.dtype}, rank 0's is {parts[0].dtype}.")
        if part.numel not in (count, padded):
            raise UserError(
                f"{folder}: rank {rank}'s partition holds {part.numel} elements where {count} are expected; "
                "optimizer state that was offloaded to NVMe is not in the checkpoint."
            )


def _slice(part: StoredTensor, start: int, stop: int) -> Extent:
    return Extent(part.file, part.offset + start * part.dtype.itemsize, stop - start)
