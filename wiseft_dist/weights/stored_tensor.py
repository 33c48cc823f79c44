"""A tensor that has not been read: a place in a file."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from wiseft_dist.weights.places import File


class StoredTensor(NamedTuple):
    """Where a tensor lies in a file: contiguous elements from a byte offset.

    A named tuple, because a pickle can set the attributes of anything else, and so point it at another file.
    """

    file: File
    offset: int
    """Of the first element, in bytes."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)
