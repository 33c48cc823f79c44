"""A metric as a function of sums over samples, so that its value and every resample of it are sums again.

Samples that add the same to every sum are one *kind*: a bootstrap draws how many of each kind there are, which is the
same as drawing samples, and costs what there are kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tally:
    """K values of one metric on one dataset, ready to be computed from any weighting of its units."""

    sums: Any
    """float64 ``[kinds, F]``, dense or a scipy CSR array: what one unit of a kind adds to each of F sums."""
    kinds: np.ndarray
    """int64 ``[units]``: the kind of each unit. A unit is a sample, or for videos an anchor."""
    finish: Callable[[np.ndarray], np.ndarray]
    """From totals ``[..., F]`` to the metric's values ``[..., K]``, fractions; NaN where nothing defines one."""
    correct: np.ndarray | None = None
    """bool ``[K, units]`` if the metric is the proportion of right units, otherwise None."""

    @property
    def num_units(self) -> int:
        """Samples, or anchors."""
        return len(self.kinds)

    @property
    def values(self) -> np.ndarray:
        """The metric on the units as they are, float64 ``[K]``."""
        return np.asarray(self.weighted(self.counts[None].astype(np.float64))[0])

    @property
    def counts(self) -> np.ndarray:
        """Units of each kind, int64 ``[kinds]``."""
        return np.asarray(np.bincount(self.kinds, minlength=self.sums.shape[0]))

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The metric for each row of weights ``[rows, kinds]``, float64 ``[rows, K]``."""
        # A sparse matrix goes first in a product, and adds whole rows at a time.
        totals = (self.sums.T @ weights.T).T if not isinstance(self.sums, np.ndarray) else weights @ self.sums
        return self.finish(totals)


def distinct(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which units are alike in all columns.

    Args:
        columns: Each ``[units]`` or ``[K, units]``; bools are packed, so that K alphas cost K bits.

    Returns:
        The first unit of each kind, int64 ``[kinds]``, and the kind of each unit, int64 ``[units]``.
    """
    parts = []
    for column in map(np.atleast_2d, columns):
        packed = np.packbits(column, axis=0) if column.dtype == bool else column
        parts.append(np.ascontiguousarray(packed.T).view(np.uint8).reshape(column.shape[1], -1))
    rows = np.ascontiguousarray(np.concatenate(parts, axis=1))
    _, first, kinds = np.unique(rows.view(f"V{rows.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return first, kinds.reshape(-1)


def proportion(correct: np.ndarray) -> Tally:
    """The fraction of units that are right, from bool ``[K, units]``."""
    first, kinds = distinct(correct)
    ones = np.ones((len(first), 1))
    sums = np.concatenate([correct[:, first].T.astype(np.float64), ones], axis=1)
    return Tally(sums, kinds, lambda totals: ratio(totals[..., :-1], totals[..., -1:]), correct)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(denominators > 0, numerators / denominators, np.nan))
