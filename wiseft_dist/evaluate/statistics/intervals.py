"""How far a number may be off because the test set is a sample: Clopper-Pearson and the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from wiseft_dist.evaluate.statistics.metrics.tally import Tally

LEVEL = 0.95
NUM_RESAMPLES = 1000
CHUNK_BYTES = 2**25
"""Of weights, or of totals, that are held at a time."""
MIN_UNITS = 2
"""A resample of a single unit is that unit again: it would look as if the number were certain."""
FEW_KINDS = 2000
"""Up to this many, drawing how many of each kind is faster than drawing every sample."""


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of level 0.95, in the unit of the number it belongs to."""

    low: float
    high: float
    method: Literal["clopper_pearson", "bootstrap", "combined"]
    """Exact for a proportion of independent samples, percentiles of resamples, or from the intervals of others."""
    num_resamples: int = 0
    """How often the bootstrap drew; 0 for the others."""
    cluster: str | None = None
    """The metadata column whose values were drawn as a whole; ``None``: samples were drawn."""
    num_clusters: int | None = None
    """How many there are; few (under about 30) make the interval too narrow."""


@dataclass(frozen=True)
class Clusters:
    """Which units were taken together and so are drawn together."""

    column: str
    """The metadata column."""
    ids: np.ndarray
    """int64 ``[units]``."""


@dataclass(frozen=True)
class Draws:
    """A metric on resamples of one dataset. All K values of a row come from the same units: differences are paired."""

    values: np.ndarray
    """float64 ``[num_resamples, K]``."""
    seed: int | tuple[int, ...] = 0
    """What they were drawn with."""
    cluster: str | None = None
    num_clusters: int | None = None

    def interval(self, values: np.ndarray) -> Interval:
        """Percentiles of what was computed from each resample, ``[num_resamples]``."""
        tail = (1 - LEVEL) / 2
        known = values[~np.isnan(values)]
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
        return Interval(float(low), float(high), "bootstrap", len(values), self.cluster, self.num_clusters)


def clopper_pearson(num_correct: np.ndarray, num_samples: int) -> list[Interval]:
    """Exact intervals of proportions, one for each count."""
    from statsmodels.stats.proportion import proportion_confint

    lows, highs = proportion_confint(np.asarray(num_correct), num_samples, alpha=1 - LEVEL, method="beta")
    return [Interval(float(low), float(high), "clopper_pearson") for low, high in zip(lows, highs, strict=True)]


def bootstrap(
    tally: Tally, *, seed: int | tuple[int, ...], num_resamples: int = NUM_RESAMPLES, clusters: Clusters | None = None
) -> Draws:
    """The metric on resamples, drawn with replacement: units, or whole clusters of units.

    Args:
        tally: The metric.
        seed: The same seed gives the same draws.
        num_resamples: How many.
        clusters: Draws clusters if given.

    Returns:
        NaN throughout where there is only one unit, or one cluster, to draw.
    """
    rng = np.random.default_rng(seed)
    num_clusters = None
    if clusters is not None:
        tally, num_clusters = _by_cluster(tally, clusters.ids)
    column = None if clusters is None else clusters.column
    if tally.num_units < MIN_UNITS:
        return Draws(np.full((num_resamples, len(tally.values)), np.nan), seed, column, num_clusters)
    rows = max(1, CHUNK_BYTES // (8 * max(tally.sums.shape)))
    values = [tally.weighted(weights) for weights in _weights(tally, rng, num_resamples, rows)]
    return Draws(np.concatenate(values), seed, column, num_clusters)


def _by_cluster(tally: Tally, ids: np.ndarray) -> tuple[Tally, int]:
    """The same metric with clusters for units, each a kind of its own."""
    names, places = np.unique(ids, return_inverse=True)
    ones = np.ones(len(ids))
    members = sparse.csr_array((ones, (places, tally.kinds)), shape=(len(names), tally.sums.shape[0]))
    return Tally(members @ tally.sums, np.arange(len(names)), tally.finish), len(names)


def _weights(tally: Tally, rng: np.random.Generator, num_resamples: int, rows: int) -> Iterator[np.ndarray]:
    """How often each kind was drawn, float64 ``[up to rows, kinds]`` at a time."""
    counts, total = tally.counts, tally.num_units
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        if len(counts) <= FEW_KINDS:
            yield rng.multinomial(total, counts / total, size=size).astype(np.float64)
            continue
        drawn = np.empty((size, len(counts)))
        for row in drawn:
            row[:] = np.bincount(tally.kinds[rng.integers(total, size=total, dtype=np.uint32)], minlength=len(counts))
        yield drawn
