"""Inner products of whole tensors, as statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from wiseft_dist.merge.methods.method import Slices

PIECE = 2**16
"""Elements worked on at a time, so that they stay in the processor's cache."""


def inner_products(slices: Slices, vectors: Callable[[Slices], Iterable[Tensor]]) -> Tensor:
    """The inner products of n vectors, fp64 ``[n (n + 1) / 2]``: of 0 with 0, 0 with 1, ..., 1 with 1, ...

    numpy's sum does not depend on the number of threads, as torch's does.

    Args:
        slices: A block on the host.
        vectors: Makes the vectors of some of its elements.
    """
    pieces = (slices.piece(start, start + PIECE) for start in range(0, len(slices.models[0]), PIECE))
    found = [_inner_products([vector.double().numpy() for vector in vectors(piece)]) for piece in pieces]
    return torch.from_numpy(np.add.reduce(found))


def _inner_products(vectors: list[np.ndarray]) -> list[float]:
    return [float(np.add.reduce(first * second)) for first, second in combinations_with_replacement(vectors, 2)]


def cosines(products: Tensor, num_vectors: int) -> list[float]:
    """The cosine of the angle between each two of n vectors; 0 where one of them is zero."""
    pairs = list(combinations_with_replacement(range(num_vectors), 2))
    found = dict(zip(pairs, products.tolist(), strict=True))
    return [
        max(-1.0, min(1.0, product / (math.sqrt(found[i, i]) * math.sqrt(found[j, j])))) if product else 0.0
        for (i, j), product in found.items()
        if i < j
    ]
