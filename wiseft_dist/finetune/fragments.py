"""Where DeepSpeed keeps this rank's piece of each parameter: fp32 masters and optimizer state, at every ZeRO stage.

Source: ``link_hp_params`` and ``grad_position`` of DeepSpeed's stages; ZeRO is arXiv 1910.02054.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one trained parameter, in the flat vectors that this rank updates."""

    name: str
    start: int
    """Their first one's place in the flattened parameter."""
    numel: int
    flat: Tensor
    """The fp32 vector of masters that holds them: what the optimizer knows as a parameter."""
    offset: int
    """Their place in it."""
    optimizer: torch.optim.Optimizer

    @property
    def master(self) -> Tensor:
        """The fp32 masters, 1-D; writing to it writes to the engine."""
        return self._view(self.flat)

    @property
    def state(self) -> dict[str, Tensor]:
        """The optimizer's elementwise state, as views like ``master``."""
        state = self.optimizer.state.get(self.flat, {})
        return {
            key: self._view(value)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.numel() == self.flat.numel() and value.ndim == self.flat.ndim
        }

    def cut(self, whole: Tensor) -> Tensor:
        """The same elements of a whole parameter-shaped tensor."""
        return whole.reshape(-1)[self.start : self.start + self.numel]

    def _view(self, vector: Tensor) -> Tensor:
        return vector.detach().view(-1).narrow(0, self.offset, self.numel)


def fragments(engine: Any, stage: int) -> list[Fragment]:
    """Every fragment on this rank, in the order of the module's parameters.

    Args:
        engine: DeepSpeed's engine.
        stage: Its ZeRO stage.
    """
    optimizer = engine.basic_optimizer
    placed = ((name, _place(engine.optimizer, stage, parameter)) for name, parameter in _trained(engine.module))
    return [Fragment(name, *place, optimizer) for name, place in placed if place is not None]


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _place(zero: Any, stage: int, parameter: Any) -> tuple[int, int, Tensor, int] | None:
    """Start in the parameter, number of elements, flat vector, place in it; None if this rank holds nothing of it."""
    if stage == 0:
        return 0, parameter.numel(), parameter, 0
    if stage == 3:
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        share = parameter.ds_tensor.ds_numel
        start = share * torch.distributed.get_rank()
        held = max(0, min(share, parameter.ds_numel - start))
        return (start, held, zero.fp32_partitioned_groups_flat[group], int(offset)) if held else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    address = mapping.lp_fragment_address
    return address.start, address.numel, flat, mapping.hp_fragment_address.start


def flats(engine: Any, stage: int) -> list[Tensor]:
    """Every vector of masters that this rank's optimizer updates, also those that hold nothing but padding."""
    if stage == 0:
        return [parameter for _, parameter in _trained(engine.module)]
    found = engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else None
    return list(engine.optimizer.single_partition_of_fp32_groups if found is None else found)


def refresh(engine: Any, stage: int) -> None:
    """Make the module's weights those of the masters. All ranks call it."""
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        zero = engine.optimizer
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
