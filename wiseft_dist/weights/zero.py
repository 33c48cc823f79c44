"""DeepSpeed's checkpoints of any ZeRO stage and world size, opened as named slices of the ranks' own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.weights.places import Folder, open_folder
from wiseft_dist.weights.records import Origin, TensorRecord, Weights, stored_record
from wiseft_dist.weights.stored_tensor import StoredTensor
from wiseft_dist.weights.zero_files import ZeroFiles, read_zero_files, tagged_folder
from wiseft_dist.weights.zero_layout import cut, frozen_fragments, num_groups

T = TypeVar("T")
MASTERS = "fp32"
AVERAGE = "ema"
STEP = "step"


@dataclass(frozen=True)
class ZeroStates:
    """What an optimizer holds. Use as a context manager: files stay open inside it."""

    tensors: dict[str, Weights]
    """By key, the state of every trained parameter, in its shape: ``fp32`` for the masters, then the optimizer's own
    (``exp_avg``, ``momentum_buffer``, ``ema``)."""
    step: float | None
    """Updates that the optimizer has counted; None where it counts none, as SGD."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for weights in self.tensors.values():
            weights.close()


def open_zero(folder: Folder) -> Weights:
    """Open the weights of a checkpoint: of the folder with the ranks' files.

    From stage 1 on trained parameters are the fp32 masters; frozen ones and buffers keep the dtype they were saved
    in. At stage 0 everything is the module's own: fp32 in a run of ours, 16-bit where the module was cast to that.

    Raises:
        UserError: if a rank's file is missing or damaged, or the layout is one that is not supported.
        RunError: if a store fails for good.
    """
    return understood(folder, lambda: _open_zero(read_zero_files(folder)))


def open_zero_average(folder: Path, groups: Sequence[Sequence[str]] | None, *, divisor: float) -> Weights:
    """As :func:`open_zero`, with the optimizer's moving average in place of the trained parameters.

    Args:
        folder: The checkpoint.
        groups: As for :func:`open_zero_states`.
        divisor: Of the stored average.

    Raises:
        UserError: as :func:`open_zero_states`, and if the optimizer holds no average.
    """
    return understood(folder, lambda: _open_zero_average(_files(folder), groups, divisor))


def open_zero_states(folder: Path | Folder, groups: Sequence[Sequence[str]] | None = None) -> ZeroStates:
    """Open the masters and the optimizer's state of a checkpoint, of whatever stage and world size.

    Args:
        folder: The checkpoint.
        groups: Names of the trained parameters by the optimizer's groups. Needed at stage 0 alone, where the
            optimizer's state is numbered.

    Raises:
        UserError: as :func:`open_zero`, and if some parameter lacks a state that others have.
    """
    return understood(folder, lambda: _open_zero_states(_files(folder), groups))


def _files(folder: Path | Folder) -> ZeroFiles:
    return read_zero_files(tagged_folder(open_folder(folder) if isinstance(folder, Path) else folder))


def understood(folder: Folder | Path, read: Callable[[], T]) -> T:
    """What ``read`` returns.

    Raises:
        UserError: if it meets a layout that it does not expect.
    """
    try:
        return read()
    except (UserError, RunError):
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder}: not laid out like a DeepSpeed checkpoint ({error!r}).") from error


def _open_zero(files: ZeroFiles) -> Weights:
    trained = {} if files.stage == 0 else cut(files, _masters(files))
    return whole_model(files, trained, Origin(files.kind, files.step, _state_names(files)))


def _open_zero_average(files: ZeroFiles, groups: Sequence[Sequence[str]] | None, divisor: float) -> Weights:
    average = _open_zero_states(files, groups).tensors.get(AVERAGE)
    if average is None:
        raise UserError(f"{files.folder}: its optimizer holds no moving average.")
    trained = {name: replace(record, divisor=divisor) for name, record in average.items()}
    trained = _under_all_names(files, trained) if files.stage == 0 else trained
    return whole_model(files, trained, Origin(f"{files.kind}, moving average", files.step, _state_names(files)))


def _under_all_names(files: ZeroFiles, trained: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    """Stage 0 does not say which parameters are tied, but what is tied lies in the file once."""
    module = _module_tensors(files.models[0], {})
    by_place = {module[name]: record for name, record in trained.items()}
    return {name: by_place[place] for name, place in module.items() if place in by_place}


def whole_model(files: ZeroFiles, trained: dict[str, TensorRecord], origin: Origin) -> Weights:
    """The trained parameters and everything else: frozen ones, buffers, and other names of tied ones."""
    if files.stage == 3:
        trained = trained | frozen_fragments(files)
    owned = trained | _module_tensors(files.models[0], trained)
    return Weights(str(files.folder), owned | _aliases(files.models[0], owned), origin)


def _masters(files: ZeroFiles) -> Callable[[int], list[Any]]:
    key = "fp32_flat_groups" if files.stage == 3 else "single_partition_of_fp32_groups"
    for rank, state in enumerate(files.optimizers):
        if len(state.get(key, ())) < num_groups(files):
            raise UserError(f"{files.folder}: rank {rank}'s file lacks fp32 partitions of ZeRO stage 1, 2 or 3.")
    return lambda group: [state[key][group] for state in files.optimizers]


def _module_tensors(model: Mapping[str, Any], known: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    """Buffers, and parameters that are kept nowhere else (stage 0; frozen at stage 1): complete in the model file."""
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


def _open_zero_states(files: ZeroFiles, groups: Sequence[Sequence[str]] | None) -> ZeroStates:
    folder, states = files.folder, _all_states(files)
    if files.stage == 0:
        tensors = _whole_states(files, states[0], groups)
    else:
        tensors = {MASTERS: cut(files, _masters(files))}
        tensors |= {key: cut(files, partial(_partitions, folder, states, key)) for key in _keys(states)}
    opened = {key: Weights(str(folder), records) for key, records in tensors.items()}
    return ZeroStates(opened, _step(folder, states))


States = dict[int, dict[str, StoredTensor]]
"""What a torch optimizer holds for each tensor that it updates, by number and key."""


def _state_names(files: ZeroFiles) -> tuple[str, ...]:
    """What the optimizer holds of each parameter; of an optimizer that is none of torch's, nothing is known."""
    try:
        return tuple(_keys(_all_states(files)))
    except UserError:
        return ()


def _all_states(files: ZeroFiles) -> list[States]:
    """Of every rank; at stage 0 of one."""
    if files.stage == 0:
        return [_torch_states(files.folder, files.models[0]["optimizer"])]
    nested = "optimizer_state_dict" if files.stage == 3 else "base_optimizer_state"
    return [_torch_states(files.folder, optimizer.get(nested)) for optimizer in files.optimizers]


def _torch_states(folder: Folder, optimizer: Any) -> States:
    """The tensors in the state dict of a torch optimizer. From stage 1 on it updates one flat partition a group."""
    if not isinstance(optimizer, dict) or "state" not in optimizer:
        raise UserError(f"{folder}: its optimizer's state is not laid out as torch's optimizers do.")
    return {
        number: {key: value for key, value in state.items() if isinstance(value, StoredTensor)}
        for number, state in optimizer["state"].items()
    }


def _keys(states: Sequence[States]) -> list[str]:
    return sorted({key for rank in states for state in rank.values() for key in state} - {STEP})


def _partitions(folder: Folder, states: Sequence[States], key: str, group: int) -> list[StoredTensor]:
    return [_state(folder, rank, group, key) for rank in states]


def _state(folder: Folder, states: States, number: int, key: str) -> StoredTensor:
    tensor = states.get(number, {}).get(key)
    if tensor is None:
        raise UserError(f"{folder}: its optimizer holds {key} for some parameters and not for others.")
    return tensor


def _whole_states(
    files: ZeroFiles, states: States, groups: Sequence[Sequence[str]] | None
) -> dict[str, dict[str, TensorRecord]]:
    """Stage 0: torch's optimizer updates the parameters themselves, in the order of its groups."""
    if groups is None:
        raise UserError(f"{files.folder}: which parameter is which in its optimizer's state (stage 0) is not recorded.")
    sizes = [len(group["params"]) for group in files.models[0]["optimizer"]["param_groups"]]
    if sizes != [len(group) for group in groups]:
        raise UserError(f"{files.folder}: its optimizer has groups of {sizes} parameters, other than were recorded.")
    names = [name for group in groups for name in group]
    module = _module_tensors(files.models[0], {})
    tensors = {MASTERS: {name: module[name] for name in names}}
    for key in _keys([states]):
        records = {name: stored_record(name, _state(files.folder, states, i, key)) for i, name in enumerate(names)}
        if other := [name for name in names if records[name].shape != module[name].shape]:
            raise UserError(f"{files.folder}: {key} of {other[0]} has another shape than the parameter.")
        tensors[key] = records
    return tensors


def _step(folder: Folder, states: Sequence[States]) -> float | None:
    """The number of updates, which every rank has counted alike."""
    counters = [state[STEP] for rank in states for state in rank.values() if STEP in state]
    records = {str(number): stored_record(STEP, counter) for number, counter in enumerate(counters)}
    with Weights(str(folder), records) as weights:
        steps = {float(weights.read(name)) for name in weights}
    if len(steps) > 1:
        raise UserError(
            f"{folder}: its optimizer has updated some parameters {min(steps):g} times, others {max(steps):g}."
        )
    return steps.pop() if steps else None
