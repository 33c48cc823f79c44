"""TIES: trim task vectors, elect signs, average what agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from wiseft_dist.merge.methods.endpoint import EndpointMethod, add_task_vector
from wiseft_dist.merge.methods.method import Slices

DIGIT_BITS = 8
NUM_DIGITS = 4
NUM_VALUES = 2**DIGIT_BITS


class Ties(EndpointMethod):
    """``theta_0 + alpha tau``: the mean, element by element, of the trimmed task vectors that have the elected sign.

    Each task vector keeps its largest elements over the whole model. Their smallest magnitude is found exactly: the
    bits of non-negative floats are ordered like the floats, and each pass of statistics counts the next 8 of them.
    Elements as large as the smallest one kept are kept too.

    Source: TIES-Merging (arXiv 2306.01708), algorithm 1. An element whose trimmed values cancel has no sign.

    Args:
        density: The share of elements that is kept (k in the paper, which recommends 0.2).
    """

    name = "ties"
    num_passes = NUM_DIGITS

    def __init__(self, density: float = 0.2) -> None:
        self._density = density
        self._thresholds: list[int] = []
        self._ranks: list[int] = []

    def observe(self, number: int, slices: Slices) -> Tensor:
        """How often the next digit has each value among the elements with the digits known so far, int64 ``[n * 256]``.

        Elements above or below them have been dealt with in earlier passes.
        """
        known = self._thresholds or [0] * (len(slices.models) - 1)
        counts = []
        for vector, threshold in zip(_task_vectors(slices), known, strict=True):
            digits = (vector.abs_().view(torch.int32) >> _shift(number)).sub_(threshold >> _shift(number))
            counts.append(torch.bincount(digits.clamp_(-1, NUM_VALUES).add_(1), minlength=NUM_VALUES + 2)[1:-1])
        return torch.cat(counts)

    def conclude(self, number: int, totals: Mapping[str, Tensor]) -> None:
        """Find the next digit of each threshold."""
        counts = torch.stack(list(totals.values())).sum(dim=0).reshape(-1, NUM_VALUES)
        if number == 0:
            num_kept = max(1, round(self._density * int(counts[0].sum())))
            self._thresholds, self._ranks = [0] * len(counts), [num_kept] * len(counts)
        for index, model in enumerate(counts):
            at_least = model.flip(0).cumsum(0).flip(0)  # elements with this digit or a larger one
            digit = int((at_least >= self._ranks[index]).nonzero().max())
            self._thresholds[index] |= digit << _shift(number)
            self._ranks[index] -= int(at_least[digit] - model[digit])

    def endpoint(self, slices: Slices) -> Tensor:
        """theta_0 with the merged task vector added."""
        trimmed = [
            hardshrink(vector, _number(threshold - 1))  # what is larger stays
            for vector, threshold in zip(_task_vectors(slices), self._thresholds, strict=True)
        ]
        elected = trimmed[0].double()
        for vector in trimmed[1:]:
            elected += vector
        sign = elected.sign_().float()
        total, count = torch.zeros_like(elected), torch.zeros_like(sign)
        for vector in trimmed:
            agreeing = vector.mul_(sign).clamp_(min=0)
            total += agreeing
            count += agreeing.sign_()
        return add_task_vector(slices.models[0], total.div_(count.clamp_(min=1)).mul_(sign))

    def describe(self) -> dict[str, Any]:
        """The density, and the smallest magnitude kept of each task vector."""
        return {"name": self.name, "density": self._density, "thresholds": list(map(_number, self._thresholds))}


def _task_vectors(slices: Slices) -> Iterator[Tensor]:
    """In fp32: magnitudes are compared by its bits."""
    return (model - slices.models[0] for model in slices.models[1:])


def _number(bits: int) -> float:
    """The fp32 number of a bit pattern; 0 for one below it."""
    return torch.tensor(max(0, bits), dtype=torch.int32).view(torch.float32).item()


def _shift(number: int) -> int:
    """The place of a pass's digit."""
    return DIGIT_BITS * (NUM_DIGITS - 1 - number)
