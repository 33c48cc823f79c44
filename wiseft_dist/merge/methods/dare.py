"""DARE: drop most of each task vector at random and rescale the rest."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from wiseft_dist.merge.methods.endpoint import EndpointMethod, add_task_vector, task_vectors
from wiseft_dist.merge.methods.method import Slices

PRECISION = 53
"""Bits of the random numbers."""


class Dare(EndpointMethod):
    """``theta_0 + alpha sum_i m_i (theta_i - theta_0) / density``, m_i being 1 with probability density and else 0.

    Source: Language models are super Mario (arXiv 2311.03099), section 3: DARE with task arithmetic.

    Args:
        density: The probability that an element stays (1 - p in the paper).
        seed: Of what is dropped.
    """

    name = "dare"

    def __init__(self, density: float = 0.1, seed: int = 0) -> None:
        self._density, self._seed = density, seed

    def endpoint(self, slices: Slices) -> Tensor:
        """theta_0 with what is left of the task vectors added."""
        total = torch.zeros_like(slices.models[0], dtype=torch.float64)
        for index, vector in enumerate(task_vectors(slices), start=1):
            total += torch.where(self._stays(slices, index), vector, 0.0)
        return add_task_vector(slices.models[0], total.div_(self._density))

    def _stays(self, slices: Slices, index: int) -> Tensor:
        """Which elements of model ``index`` are not dropped, bool. It depends on their places, not on the slices."""
        zero_shot = slices.models[0]
        stream = hashlib.blake2b(f"{self._seed}/{index}/{slices.name}".encode(), digest_size=8).digest()
        places = torch.arange(slices.start, slices.start + len(zero_shot), device=zero_shot.device)
        numbers = _logical_shift(_split_mix(places, int.from_bytes(stream, "little", signed=True)), 64 - PRECISION)
        return torch.lt(numbers, round(self._density * 2**PRECISION))

    def describe(self) -> dict[str, Any]:
        """Density and seed."""
        return {"name": self.name, "density": self._density, "seed": self._seed}


def _split_mix(places: Tensor, stream: int) -> Tensor:
    """The numbers of a stream at some places, int64 of which all 64 bits are random. ``places`` is overwritten.

    Source: SplitMix64 of Fast splittable pseudorandom number generators (doi 10.1145/2660193.2660195).
    """
    bits = places.mul_(_signed(0x9E3779B97F4A7C15)).add_(stream)
    bits.bitwise_xor_(_logical_shift(bits, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits.bitwise_xor_(_logical_shift(bits, 27)).mul_(_signed(0x94D049BB133111EB))
    return bits.bitwise_xor_(_logical_shift(bits, 31))


def _logical_shift(bits: Tensor, distance: int) -> Tensor:
    """Right shift that fills with zeros: torch's fills with the sign."""
    return (bits >> distance).bitwise_and_(2 ** (64 - distance) - 1)


def _signed(constant: int) -> int:
    """The int64 of the same bits."""
    return constant - 2**64 if constant >= 2**63 else constant
