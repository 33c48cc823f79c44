"""Layouts of ZeRO partitions for shapes, world sizes and paddings that no real checkpoint of the other tests has.

The partitions are made here as DeepSpeed lays them out: by flattening, padding and cutting, not by index arithmetic.
"""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wiseft_dist.weights.places import open_folder
from wiseft_dist.weights.zero import open_zero

SHAPES = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=5)
GROUPS = st.lists(SHAPES, min_size=1, max_size=3)
WORLD_SIZES = st.integers(1, 12)
FILLED = settings(max_examples=60, deadline=None)


def named_tensors(groups: Sequence[Sequence[tuple[int, ...]]]) -> list[dict[str, Tensor]]:
    """Every element of every tensor is another number."""
    numbers, names = itertools.count(1), itertools.count()
    return [
        {
            f"p{next(names)}": torch.tensor([float(next(numbers)) for _ in range(torch.Size(shape).numel())]).reshape(
                shape
            )
            for shape in shapes
        }
        for shapes in groups
    ]


def junk(count: int) -> Tensor:
    return torch.full((count,), float("nan"))


def write(folder: Path, groups: list[dict[str, Tensor]], states: list[dict[str, Any]], *, stage: int) -> None:
    model = {"module": {}, "param_shapes": [{name: value.shape for name, value in group.items()} for group in groups]}
    for rank, state in enumerate(states):
        saved = {"optimizer_state_dict": state | {"partition_count": len(states), "zero_stage": stage}}
        torch.save(saved, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage != 3:
        torch.save(model, folder / "mp_rank_00_model_states.pt")


def assert_read(folder: Path, groups: list[dict[str, Tensor]]) -> None:
    expected = {name: value for group in groups for name, value in group.items()}
    with open_zero(open_folder(folder)) as weights:
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(weights.tensor(name), value), name


def flattened(group: dict[str, Tensor], paddings: Sequence[int], world_size: int) -> list[Tensor]:
    """Equal partitions of a group, each of an even number of elements."""
    parts = [
        part
        for value, padding in zip(group.values(), paddings, strict=True)
        for part in (value.reshape(-1), junk(padding))
    ]
    flat = torch.cat(parts)
    flat = torch.cat([flat, junk(-len(flat) % (2 * world_size))])
    return list(flat.chunk(world_size))


@FILLED
@given(shapes=GROUPS, world_size=WORLD_SIZES, stripped=st.booleans(), draw=st.data())
def test_flat_groups_are_read_with_and_without_the_padding_of_their_end(shapes, world_size, stripped, draw):
    """Stages 1 and 2 strip it; the stage-1 optimizer for bf16 with fp32 accumulation does not."""
    groups = named_tensors(shapes)
    paddings = [draw.draw(st.lists(st.integers(0, 7), min_size=len(g), max_size=len(g))) for g in groups]
    flat = [flattened(group, padding, world_size) for group, padding in zip(groups, paddings, strict=True)]
    num_elements = [sum(v.numel() for v in g.values()) + sum(p) for g, p in zip(groups, paddings, strict=True)]

    def saved(rank: int) -> list[Tensor]:
        held = [max(0, min(len(f[0]), n - rank * len(f[0]))) for f, n in zip(flat, num_elements, strict=True)]
        return [f[rank][:count].clone() if stripped else f[rank].clone() for f, count in zip(flat, held, strict=True)]

    states = [
        {"single_partition_of_fp32_groups": saved(rank), "param_alignment_paddings": paddings}
        for rank in range(world_size)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), groups, states, stage=2)
        assert_read(Path(folder), groups)


@FILLED
@given(shapes=GROUPS, world_size=WORLD_SIZES)
def test_parameters_cut_over_all_ranks_are_read_without_their_padding(shapes, world_size):
    groups = named_tensors(shapes)

    def cut(value: Tensor, rank: int) -> Tensor:
        flat = value.reshape(-1)
        return torch.cat([flat, junk(-len(flat) % world_size)]).chunk(world_size)[rank]

    states = [
        {"fp32_flat_groups": [torch.cat([cut(value, rank) for value in group.values()]) for group in groups]}
        for rank in range(world_size)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), groups, states, stage=3)
        assert_read(Path(folder), groups)
