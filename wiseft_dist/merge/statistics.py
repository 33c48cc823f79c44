"""What a method must know of whole tensors, gathered by all threads of all ranks before the first chunk is mixed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from wiseft_dist.merge.inputs import InputReader, set_aside
from wiseft_dist.merge.methods.method import Block, Method, Slices, add_up, blocks
from wiseft_dist.merge.ranks import RankGroup, share
from wiseft_dist.merge.threads import for_each


def take_statistics_together(method: Method, inputs: InputReader, group: RankGroup, *, num_threads: int) -> None:
    """Begin a method and take it through all its passes; it ends up the same on every rank, and for any number of them.

    Raises:
        UserError: as :meth:`Method.begin` and :meth:`InputReader.read`.
        RunError: if a file cannot be read, or a rank is gone.
    """
    mixed = {name: record.numel for name, record in inputs.models.zero_shot.items() if inputs.models.is_mixed(name)}
    method.begin(mixed)
    mine = share(list(blocks(mixed)), lambda block: block.stop - block.start, group.rank, group.world_size)
    for number in range(method.num_passes):
        parts = group.everywhere(partial(_observe, method, number, inputs, mine, num_threads))
        method.conclude(number, add_up({block: found for part in parts for block, found in part.items()}))


def _observe(
    method: Method, number: int, inputs: InputReader, mine: list[Block], num_threads: int
) -> Mapping[Block, Tensor]:
    found: dict[Block, Tensor] = {}
    adding = threading.Lock()

    def observe(block: Block) -> None:
        observed = method.observe(number, _read(inputs, block))
        with adding:
            found[block] = observed

    def worker() -> Callable[[Block], None]:
        return observe

    for_each(mine, worker, num_threads=num_threads)
    return found


def _read(inputs: InputReader, block: Block) -> Slices:
    held = []
    for source in inputs.holders(block.name):
        held.append(torch.empty(block.stop - block.start))
        inputs.read(source, block.name, block.start, held[-1], lambda numel, dtype: torch.empty(numel, dtype=dtype))
    num_models = 1 + len(inputs.models.finetuned)
    if inputs.allow_nonfinite:
        set_aside(held[:num_models])
    return Slices(block.name, block.start, held[:num_models], held[num_models:])
