"""DeepSpeed's sharded checkpoints, opened as named fp32 slices straight from the ranks' partitions.

Sources of the layout: deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, deepspeed/utils/zero_to_fp32.py
(0.19.8). DeepSpeed itself is not needed here. Padding, which is uninitialised memory, is never part of a slice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wiseft_dist.errors import UserError
from wiseft_dist.merge.torch_archive import StoredTensor, read_archive
from wiseft_dist.merge.weights import Extent, TensorRecord, Weights, stored_record

Shape = tuple[int, ...]
T = TypeVar("T")
_OPTIM = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_model_states\.pt$")


def is_zero_checkpoint(folder: Path) -> bool:
    """Whether the folder, or the one its ``latest`` names, holds optimizer partitions."""
    return bool(_ranked(folder, _OPTIM)) or (folder / "latest").is_file()


def open_zero(folder: Path) -> Weights:
    """Open a checkpoint of ZeRO stage 1, 2 or 3 and any world size.

    Trained parameters are the fp32 masters; frozen ones and buffers keep the dtype they were saved in.

    Raises:
        UserError: if a rank's file is missing or damaged, or the layout is one that is not supported.
    """
    folder = _tagged(folder)
    try:
        return Weights(str(folder), _records(folder))
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder}: not laid out like a DeepSpeed checkpoint ({error!r}).") from error


def _tagged(folder: Path) -> Path:
    """The folder with the files: itself, or the one that ``latest`` names."""
    if _ranked(folder, _OPTIM) or not (folder / "latest").is_file():
        return folder
    tag = folder / (folder / "latest").read_text(errors="replace").strip()
    if not tag.is_dir():
        raise UserError(f"{folder}/latest names {tag.name}, which is not there.")
    return tag


def _ranked(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.pt")):
        if match := pattern.match(path.name):
            rank = int(match.group(1))
            if rank in files:
                raise UserError(
                    f"{folder}: both {files[rank].name} and {path.name} are of rank {rank}; two saves are mixed here."
                )
            files[rank] = path
    return files


def _records(folder: Path) -> dict[str, TensorRecord]:
    optimizer = _read_optimizer(folder)
    if "fp32_flat_groups" in optimizer[0]:
        files = _of_all_ranks(folder, "model", _ranked(folder, _MODEL), len(optimizer))
        models = [_read(file) for file in files]
        trained = _stage3(folder, models, optimizer)
    elif "single_partition_of_fp32_groups" in optimizer[0]:
        models = [_read(folder / "mp_rank_00_model_states.pt")]
        trained = _stage12(folder, models[0], optimizer)
    else:
        raise UserError(f"{folder}: its optimizer files hold no fp32 partitions of ZeRO stage 1, 2 or 3.")
    owned = trained | _module_tensors(models[0], trained)
    return owned | _aliases(models[0], owned)


def _read_optimizer(folder: Path) -> list[dict[str, Any]]:
    """The optimizer states of all ranks."""
    files = _ranked(folder, _OPTIM)
    states = {rank: _read(file)["optimizer_state_dict"] for rank, file in files.items()}
    count = next(iter(states.values()))["partition_count"] if states else 1
    return _of_all_ranks(folder, "optimizer", states, max(count) if isinstance(count, list) else count)


def _of_all_ranks(folder: Path, kind: str, ranked: Mapping[int, T], world_size: int) -> list[T]:
    """In the order of the ranks, none missing and none too many."""
    if missing := set(range(world_size)) - ranked.keys():
        raise UserError(f"{folder}: the {kind} file of rank {min(missing)} of {world_size} is missing.")
    if surplus := ranked.keys() - set(range(world_size)):
        raise UserError(f"{folder}: has a file of rank {min(surplus)}, but was written by {world_size} ranks.")
    return [ranked[rank] for rank in range(world_size)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: this file of the checkpoint is missing.")
    state = read_archive(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a DeepSpeed state file.")
    return state


def _stage12(folder: Path, model: Mapping[str, Any], optimizer: Sequence[Mapping[str, Any]]) -> dict[str, TensorRecord]:
    """Stages 1 and 2: each group is one flat vector, cut into equal partitions.

    With N elements in a group (parameters and their alignment padding) and W ranks, a partition has
    P = 2 ceil(N / 2W) elements and rank r holds [rP, (r+1)P); a parameter may straddle ranks.
    """
    world_size, records = len(optimizer), {}
    for group, shapes in enumerate(_shapes(model)):
        paddings = _group_paddings(optimizer[0], group, len(shapes))
        total = sum(math.prod(shape) for shape in shapes.values()) + sum(paddings)
        partition = 2 * math.ceil(total / (2 * world_size))
        parts = [_stored(state["single_partition_of_fp32_groups"][group], folder) for state in optimizer]
        held = [max(0, min(partition, total - rank * partition)) for rank in range(world_size)]
        _check_parts(folder, parts, held, padded=partition)
        begin = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            end = begin + math.prod(shape)
            records[name] = TensorRecord(shape, parts[0].dtype, _cut_at_partitions(parts, partition, begin, end))
            begin = end + padding
    return records


def _cut_at_partitions(parts: Sequence[StoredTensor], partition: int, begin: int, end: int) -> tuple[Extent, ...]:
    bounds = [(max(begin - rank * partition, 0), min(end - rank * partition, partition)) for rank in range(len(parts))]
    return tuple(_slice(part, start, stop) for part, (start, stop) in zip(parts, bounds, strict=True) if start < stop)


def _group_paddings(state: Mapping[str, Any], group: int, count: int) -> list[int]:
    """Elements of padding after each parameter (``param_alignment_paddings``, since DeepSpeed 0.19.7)."""
    paddings = state.get("param_alignment_paddings")
    return [int(p) for p in paddings[group]] if paddings else [0] * count


def _stage3(
    folder: Path, models: Sequence[Mapping[str, Any]], optimizer: Sequence[Mapping[str, Any]]
) -> dict[str, TensorRecord]:
    """Stage 3: every parameter is cut over all ranks; sub-groups of parameters are laid end to end.

    A parameter of n elements takes p = ceil(n / W) in every rank's vector; rank r holds [rp, min((r+1)p, n)).
    """
    world_size = len(optimizer)
    flat = [[_stored(t, folder) for t in state["fp32_flat_groups"]] for state in optimizer]
    records = {}
    for group, shapes in enumerate(_shapes(models[0])):
        if any(group >= len(parts) for parts in flat):
            raise UserError(f"{folder}: parameter group {group} has no fp32 partition in some rank's file.")
        parts = [rank_parts[group] for rank_parts in flat]
        needed = sum(math.ceil(math.prod(shape) / world_size) for shape in shapes.values())
        _check_parts(folder, parts, [needed] * world_size)
        begin = 0
        for name, shape in shapes.items():
            records[name] = TensorRecord(shape, parts[0].dtype, _cut_over_ranks(parts, begin, math.prod(shape)))
            begin += math.ceil(math.prod(shape) / world_size)
    return records | _frozen_fragments(folder, models)


def _frozen_fragments(folder: Path, models: Sequence[Mapping[str, Any]]) -> dict[str, TensorRecord]:
    """Frozen parameters of stage 3: a fragment of each, with padding, in every rank's model file."""
    records = {}
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        fragments = [_stored(model["frozen_param_fragments"][name], folder) for model in models]
        numel = math.prod(shape)
        _check_parts(folder, fragments, [math.ceil(numel / len(models))] * len(models))
        records[name] = TensorRecord(tuple(shape), fragments[0].dtype, _cut_over_ranks(fragments, 0, numel))
    return records


def _cut_over_ranks(parts: Sequence[StoredTensor], begin: int, numel: int) -> tuple[Extent, ...]:
    share = math.ceil(numel / len(parts)) if numel else 0
    held = [max(0, min(share, numel - rank * share)) for rank in range(len(parts))]
    return tuple(_slice(part, begin, begin + count) for part, count in zip(parts, held, strict=True) if count)


def _shapes(model: Mapping[str, Any]) -> list[dict[str, Shape]]:
    """Names and shapes of the trained parameters of each group, in the order in which they are laid out."""
    return [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]


def _stored(tensor: Any, folder: Path) -> StoredTensor:
    if not isinstance(tensor, StoredTensor) or not tensor.contiguous:
        raise UserError(f"{folder}: a partition is not a plain tensor.")
    return tensor


def _check_parts(
    folder: Path, parts: Sequence[StoredTensor], expected: Sequence[int], *, padded: int | None = None
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


def _module_tensors(model: Mapping[str, Any], known: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    """Buffers, and the frozen parameters that stage 1 keeps nowhere else: complete in the model file."""
    buffers = set(model.get("buffer_names") or ())
    shared = set(model.get("shared_params") or ())
    return {
        name: stored_record(name, tensor)
        for name, tensor in model["module"].items()
        if name not in known and name not in shared and isinstance(tensor, StoredTensor)
        and (name in buffers or tensor.numel or 0 in tensor.shape[1:])
    }  # fmt: skip


def _aliases(model: Mapping[str, Any], known: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    """Tied parameters: an alias is its owner's data."""
    shared = model.get("shared_params") or {}
    return {alias: known[owner] for alias, owner in shared.items() if owner in known}
