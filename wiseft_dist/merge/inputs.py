"""Reading slices of models as they are merged: floating point as fp32, every number checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.weights.pairing import Models
from wiseft_dist.weights.records import Weights


@dataclass(frozen=True)
class Constants:
    """Elements that no alpha changes."""

    places: Tensor
    """In a slice, int64."""
    values: Tensor

    def put_back(self, out: Tensor) -> None:
        """Write them into a slice of any floating-point dtype."""
        out[self.places] = self.values.to(out.dtype)


@dataclass(frozen=True)
class InputReader:
    """What is read of which model, and which numbers may be in it."""

    models: Models
    dtype: torch.dtype
    """Of the written floating-point tensors."""
    allow_nonfinite: bool

    @property
    def sources(self) -> list[Weights]:
        """theta_0, theta_1, ..., then the Fisher information of each, where there is one."""
        return [self.models.zero_shot, *self.models.finetuned, *self.models.fisher]

    def holders(self, name: str) -> list[int]:
        """Which of the sources a tensor is read from: those that decide it at any alpha, theta_0 first."""
        if name in self.models.carried:
            return [0]
        if name in self.models.taken:
            return [1]
        return list(range(len(self.sources))) if self.models.is_mixed(name) else [0, 1]

    def held_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What a tensor that is written in ``dtype`` is held in."""
        return torch.float32 if dtype.is_floating_point else dtype

    def read(
        self, source: int, name: str, start: int, out: Tensor, allot: Callable[[int, torch.dtype], Tensor]
    ) -> Tensor:
        """Fill ``out`` with a tensor's elements from ``start`` on.

        Args:
            source: Its place in :attr:`sources`.
            name: The tensor.
            start: The first element.
            out: 1-D, of :meth:`held_dtype`.
            allot: Gives memory for so many elements of another dtype, until the next call.

        Returns:
            The elements as they are stored: ``out`` itself, or such memory.

        Raises:
            UserError: if one is NaN, Inf or beyond the written dtype, or Fisher information is beyond fp32 or
                negative, naming tensor, place and file.
            RunError: if a file cannot be read.
        """
        weights = self.sources[source]
        stored_dtype = weights[name].dtype
        stored = out if stored_dtype == out.dtype else allot(out.numel(), stored_dtype)
        try:
            weights.read_into(name, start, stored)
        except OSError as error:
            file = weights.locate(name, start)
            raise RunError(f"{file}: tensor {name} cannot be read: {error.strerror or error}.") from error
        if stored is not out:
            out.copy_(stored)
        is_fisher = source > len(self.models.finetuned)
        if out.is_floating_point() and not self.allow_nonfinite:
            self._check(weights, name, start, out, torch.float32 if is_fisher else self.dtype)
        if is_fisher:
            _refuse_negative(weights, name, start, out)
        return stored

    def _check(self, weights: Weights, name: str, start: int, elements: Tensor, dtype: torch.dtype) -> None:
        bad = first_beyond(elements, dtype)
        if bad is None:
            return
        value = elements[bad]
        remedy = (
            f"{self.dtype} cannot hold that: write the ensembles in fp32"
            if value.isfinite()
            else "A diverged run cannot be merged: choose an earlier checkpoint; for a constant, such as a mask of "
            "-inf, pass --allow-nonfinite (merge.allow_nonfinite)"
        )
        raise UserError(
            f"{weights.locate(name, start + bad)}: tensor {name} (shape {list(weights[name].shape)}) holds "
            f"{value.item()} at element {start + bad}. {remedy}."
        )


def first_beyond(elements: Tensor, dtype: torch.dtype) -> int | None:
    """The place of the first element that is NaN, Inf or beyond the largest number of a dtype, if there is one."""
    limit = torch.finfo(dtype).max
    low, high = torch.aminmax(elements)  # both NaN where any element is
    if -limit <= low and high <= limit:
        return None
    return int((~(elements.abs() <= limit)).nonzero()[0])


def set_aside(models: Sequence[Tensor]) -> Constants | None:
    """Put zeros for elements that are the same NaN or Inf in all models, such as a mask of -inf; they are not mixed.

    Args:
        models: theta_0, theta_1, ...; 1-D, fp32, changed in place.

    Returns:
        What was there, if there was any.
    """
    zero_shot = models[0]
    is_constant = ~zero_shot.isfinite()
    for model in models[1:]:
        is_constant &= model.view(torch.int32) == zero_shot.view(torch.int32)
    if not is_constant.any():
        return None
    places = is_constant.nonzero().squeeze(1)
    constants = Constants(places, zero_shot[places])
    for model in models:
        model[places] = 0.0
    return constants


def _refuse_negative(weights: Weights, name: str, start: int, elements: Tensor) -> None:
    is_negative = elements < 0
    if is_negative.any():
        bad = int(is_negative.nonzero()[0])
        raise UserError(
            f"{weights.locate(name, start + bad)}: tensor {name} (shape {list(weights[name].shape)}) holds "
            f"{elements[bad].item()} at element {start + bad}. Fisher information is never negative: name another file."
        )
