"""Made-up models of a real size: theta_0 as safetensors, theta_1 as DeepSpeed leaves it after ZeRO-2 with Adam in bf16.

The checkpoint is laid out as DeepSpeed 0.19.8 does it (deepspeed/runtime/engine.py, ``save_checkpoint``;
runtime/zero/stage_1_and_2.py, ``state_dict``), so that its own ``zero_to_fp32`` reads it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

WORLD_SIZE = 8
NUM_CLASSES = 1000
TAG = "global_step1"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class MadeUp:
    """Two models on disk."""

    zero_shot: Path
    """One safetensors file, fp32."""
    finetuned: Path
    """A folder with ``latest`` and the ranks' files."""
    num_parameters: int

    def files(self) -> list[Path]:
        """All files of both."""
        return [self.zero_shot, *sorted((self.finetuned / TAG).iterdir())]


def shapes_of(architecture: str, *, whole: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's visual tower with a head for 1,000 classes, or of the whole CLIP."""
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise SystemExit(f"benchmarks.merge: open_clip has no architecture {architecture}.")
    with torch.device("meta"):
        state = open_clip.CLIP(**config).state_dict()
    if whole:
        return {name: tuple(tensor.shape) or (1,) for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("visual.")}
    return shapes | {"head.weight": (NUM_CLASSES, config["embed_dim"]), "head.bias": (NUM_CLASSES,)}


def write_models(folder: Path, shapes: Shapes, *, empty: bool = False) -> MadeUp:
    """Write both models.

    Args:
        folder: Gets a file and a folder.
        shapes: Of the parameters; two optimizer groups are made of them, as open_clip's trainer does.
        empty: Write files of the right size that take no room: their tensors are holes, which read as zeros.
    """
    models = MadeUp(folder / "zero_shot.safetensors", folder / "finetuned", sum(map(prod, shapes.values())))
    (models.finetuned / TAG).mkdir(parents=True)
    (models.finetuned / "latest").write_text(TAG)
    groups = [
        OrderedDict((name, torch.Size(shape)) for name, shape in shapes.items() if (len(shape) > 1) == decays)
        for decays in (True, False)
    ]
    with ExitStack() as stack:
        if empty:
            stack.enter_context(FakeTensorMode())
            stack.enter_context(torch.serialization.skip_data(materialize_fake_tensors=True))
        torch.manual_seed(0)
        zero_shot = [0.02 * torch.randn(sum(map(prod, group.values()))) for group in groups]
        updates = [1e-3 * torch.randn(flat.numel()) for flat in zero_shot]
        _write_zero_shot(models.zero_shot, groups, zero_shot, empty=empty)
        finetuned = [flat.add_(update) for flat, update in zip(zero_shot, updates, strict=True)]
        _write_model_states(models.finetuned / TAG, groups, finetuned)
        for rank in range(WORLD_SIZE):
            _write_optimizer_states(models.finetuned / TAG, rank, finetuned, updates)
    return models


def _write_zero_shot(file: Path, groups: list[Any], flats: list[Tensor], *, empty: bool) -> None:
    """Straight from the flat vectors: safetensors itself refuses tensors that share their memory."""
    header: dict[str, Any] = {}
    position = 0
    for group, flat in zip(groups, flats, strict=True):
        for name, tensor in _named(group, flat):
            end = position + 4 * tensor.numel()
            header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
            position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        if empty:
            handle.truncate(8 + len(text) + position)
        else:
            handle.writelines(flat.numpy().data for flat in flats)


def _write_model_states(folder: Path, groups: list[Any], finetuned: list[Tensor]) -> None:
    module = {
        name: tensor
        for group, flat in zip(groups, finetuned, strict=True)
        for name, tensor in _named(group, flat.bfloat16())
    }
    state = {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": groups,
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "dp_world_size": WORLD_SIZE,
        "mp_world_size": 1,
        "global_steps": 1,
        "skipped_steps": 0,
        "ds_version": "0.19.8",
    }
    torch.save(state, folder / "mp_rank_00_model_states.pt")


def _write_optimizer_states(folder: Path, rank: int, finetuned: list[Tensor], updates: list[Tensor]) -> None:
    """A rank's masters are saved without the padding behind them, its moments with it."""
    masters = [_partition(flat, rank) for flat in finetuned]
    moments = [_partition(update, rank) for update in updates]
    lengths = [
        max(0, min(master.numel(), flat.numel() - rank * master.numel()))
        for master, flat in zip(masters, finetuned, strict=True)
    ]
    adam = {
        number: {"step": torch.ones(()), "exp_avg": 0.1 * moment, "exp_avg_sq": 1e-3 * moment.square()}
        for number, moment in enumerate(moments)
    }
    groups = [{"lr": 3e-5, "weight_decay": decay, "params": [number]} for number, decay in enumerate((0.1, 0.0))]
    state = {
        "base_optimizer_state": {"state": adam, "param_groups": groups},
        "single_partition_of_fp32_groups": [master[:length] for master, length in zip(masters, lengths, strict=True)],
        "zero_stage": 2,
        "group_paddings": [
            master.numel() - length if rank == WORLD_SIZE - 1 else 0
            for master, length in zip(masters, lengths, strict=True)
        ],
        "partition_count": [WORLD_SIZE] * len(masters),
        "ds_version": "0.19.8",
    }
    file = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, file)


def _partition(flat: Tensor, rank: int) -> Tensor:
    """A rank's part of a group, in memory of its own; all have the same even length."""
    length = 2 * ceil(flat.numel() / (2 * WORLD_SIZE))
    part = torch.zeros(length)
    held = flat[rank * length : (rank + 1) * length]
    part[: held.numel()] = held
    return part


def _named(group: Mapping[str, torch.Size], flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that lie end to end in a vector."""
    begin = 0
    for name, shape in group.items():
        yield name, flat[begin : begin + shape.numel()].view(shape)
        begin += shape.numel()
