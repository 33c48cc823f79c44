"""Whether two ensembles differ on the same samples: McNemar's test and the paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from wiseft_dist.evaluate.statistics.intervals import Draws, Interval

EXACT_UP_TO = 25
"""Samples that only one has right: up to here the chi-squared distribution is a poor approximation."""

Endpoint = Literal["zero_shot", "finetuned"]
ENDPOINTS: dict[Endpoint, float] = {"zero_shot": 0.0, "finetuned": 1.0}


@dataclass(frozen=True)
class McNemar:
    """Is one ensemble right where the other is wrong more often than the other way round?"""

    num_only_first: int
    """Samples that only the first (alpha) has right."""
    num_only_second: int
    """Samples that only the second (an endpoint) has right."""
    method: Literal["exact", "chi2"]
    """Binomial for few such samples; otherwise chi-squared with continuity correction."""
    p_value: float
    """Two-sided. Takes the samples for independent: with clusters, trust the bootstrap interval instead."""


@dataclass(frozen=True)
class Comparison:
    """One alpha against an endpoint on one dataset, over the same samples."""

    alpha: float
    against: Endpoint
    difference: float
    """Primary metric of alpha minus that of the endpoint, in percentage points."""
    interval: Interval
    """Paired bootstrap of the difference, in percentage points; clustered where the dataset asks for it."""
    mcnemar: McNemar
    """On the samples' correctness (top-1; pm-0 for videos)."""
    adjusted_p_value: float
    """McNemar's, after Holm's correction for all comparisons of this dataset."""

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.interval.low > 0 or self.interval.high < 0


def compare(alphas: Sequence[float], values: np.ndarray, draws: Draws, correct: np.ndarray) -> tuple[Comparison, ...]:
    """Every alpha against the endpoints among them.

    Args:
        alphas: K.
        values: The primary metric, fractions ``[K]``.
        draws: Its resamples.
        correct: bool ``[K, units]``, all on the same units.
    """
    found = []
    for against, endpoint in ENDPOINTS.items():
        if endpoint not in alphas:
            continue
        other = list(alphas).index(endpoint)
        for index, alpha in enumerate(alphas):
            if index == other or (against == "finetuned" and alpha == ENDPOINTS["zero_shot"]):
                continue  # the endpoints are compared once, as fine-tuned against zero-shot
            test = mcnemar(correct[index], correct[other])
            interval = draws.interval(100 * (draws.values[:, index] - draws.values[:, other]))
            difference = 100 * float(values[index] - values[other])
            found.append(Comparison(alpha, against, difference, interval, test, test.p_value))
    adjusted = holm([entry.mcnemar.p_value for entry in found])
    return tuple(replace(entry, adjusted_p_value=value) for entry, value in zip(found, adjusted, strict=True))


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's test of two ensembles on the same units.

    Args:
        first: bool ``[units]``: the first has it right.
        second: bool ``[units]``: the second has it right.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    exact = only_first + only_second <= EXACT_UP_TO
    method: Literal["exact", "chi2"] = "exact" if exact else "chi2"
    if only_first + only_second == 0:
        return McNemar(0, 0, method, 1.0)
    # Where both are right or both are wrong does not enter the test.
    result = test([[0, only_first], [only_second, 0]], exact=exact, correction=True)
    return McNemar(only_first, only_second, method, min(1.0, float(result.pvalue)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction, in the order given.

    As statsmodels' ``multipletests``, which collects garbage at every call: longer than all the rest of a dataset.

    Source: Holm, A simple sequentially rejective multiple test procedure (Scand. J. Statist. 6, 1979).
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]
