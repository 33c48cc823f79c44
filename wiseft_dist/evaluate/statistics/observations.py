"""Observations 1 and 2 of the paper, checked on a run's numbers and put in words (arXiv 2109.01903, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wiseft_dist.evaluate.statistics.intervals import Draws, Interval

SHIFT_AVERAGE = "shift average"
ROUNDING = 1e-9
"""Percentage points: sums of fractions differ in their last bits."""


@dataclass(frozen=True)
class Gap:
    """How far an ensemble lies above what it is compared with."""

    alpha: float
    accuracy: float
    """Primary metric at alpha, a fraction."""
    compared_with: float
    """A fraction: the straight line between the endpoints at alpha (Observation 1), the better endpoint (2)."""
    gap: float
    """``accuracy - compared_with`` in percentage points."""
    interval: Interval
    """Paired bootstrap of the gap, in percentage points."""


@dataclass(frozen=True)
class Observation:
    """One observation on one dataset or on the average over the shifts."""

    number: Literal[1, 2]
    """1: accuracy(alpha) >= the straight line between the endpoints. 2: some alpha beats both endpoints."""
    dataset: str
    """The dataset, or ``shift average``."""
    holds: bool
    """In the measured numbers."""
    within_noise: bool
    """Whether it could be the other way round: the interval of the deciding gap reaches to the other side of 0. It is
    that alpha's interval alone, not widened for having looked at several."""
    deciding: Gap
    """Observation 1: the lowest gap of all alphas between 0 and 1. Observation 2: the highest."""
    gaps: tuple[Gap, ...]
    """All alphas strictly between 0 and 1, rising."""
    sentence: str
    """For people: what was looked at, what came out, whether it is more than noise."""


def observe(
    dataset: str, alphas: Sequence[float], values: np.ndarray, draws: Draws, *, title: str | None = None
) -> tuple[Observation, ...]:
    """Both observations; none without the endpoints and an alpha between them.

    Args:
        dataset: What the numbers are of.
        alphas: K.
        values: The primary metric, fractions ``[K]``.
        draws: Its resamples ``[num_resamples, K]``.
        title: What the sentences call the dataset.
    """
    between = [index for index, alpha in enumerate(alphas) if 0 < alpha < 1]
    if not {0.0, 1.0} <= set(alphas) or not between or np.isnan(values).any():
        return ()
    ends = [list(alphas).index(0.0), list(alphas).index(1.0)]

    def gap(index: int, level: np.ndarray, resampled: np.ndarray) -> Gap:
        """Of one alpha; level and resampled are what it is compared with."""
        interval = draws.interval(100 * (draws.values[:, index] - resampled))
        accuracy, compared_with = float(values[index]), float(level)
        return Gap(alphas[index], accuracy, compared_with, 100 * (accuracy - compared_with), interval)

    def line(ends_of: np.ndarray, alpha: float) -> np.ndarray:
        return (1 - alpha) * ends_of[..., 0] + alpha * ends_of[..., 1]

    at_ends, resampled = values[ends], draws.values[:, ends]
    above_line = tuple(gap(i, line(at_ends, alphas[i]), line(resampled, alphas[i])) for i in between)
    above_both = tuple(gap(i, at_ends.max(), resampled.max(axis=1)) for i in between)
    return _first(dataset, title or dataset, above_line), _second(dataset, title or dataset, above_both)


def _first(dataset: str, title: str, gaps: tuple[Gap, ...]) -> Observation:
    """Accuracy is at least the straight line between the endpoints, at every alpha."""
    lowest = min(gaps, key=lambda entry: entry.gap)
    holds = lowest.gap >= -ROUNDING
    noise = _within_noise(holds, lowest.interval)
    if holds:
        text = f"at no alpha does accuracy lie below the straight line between the endpoints (closest at {_at(lowest)})"
    else:
        number = sum(entry.gap < -ROUNDING for entry in gaps)
        text = (
            f"accuracy lies below the straight line between the endpoints at {number} of {len(gaps)} alphas "
            f"(farthest at {_at(lowest)})"
        )
    return Observation(1, dataset, holds, noise, lowest, gaps, _sentence(1, title, holds, text, lowest, noise))


def _second(dataset: str, title: str, gaps: tuple[Gap, ...]) -> Observation:
    """Some alpha is better than both endpoints."""
    highest = max(gaps, key=lambda entry: entry.gap)
    holds = highest.gap > ROUNDING
    noise = _within_noise(holds, highest.interval)
    many = sum(entry.gap > ROUNDING for entry in gaps)
    better = f"{many} of {len(gaps)} alphas {'is' if many == 1 else 'are'} better than both endpoints"
    text = f"{better} (best at {_at(highest)})" if holds else f"no alpha beats both endpoints (best at {_at(highest)})"
    return Observation(2, dataset, holds, noise, highest, gaps, _sentence(2, title, holds, text, highest, noise))


def _within_noise(holds: bool, interval: Interval) -> bool:
    """Whether the interval leaves the opposite possible. One that is not known (NaN) rules nothing out."""
    return not interval.low > 0 if holds else not interval.high < 0


def _at(gap: Gap) -> str:
    return f"alpha {gap.alpha:g}: {100 * gap.accuracy:.2f} % against {100 * gap.compared_with:.2f} %"


def _sentence(number: int, title: str, holds: bool, text: str, deciding: Gap, noise: bool) -> str:
    verdict = "holds" if holds else "does not hold"
    low, high = deciding.interval.low, deciding.interval.high
    known = not (np.isnan(low) or np.isnan(high))
    interval = f"95 % interval {low:+.2f} to {high:+.2f} pp" if known else "too little was sampled for an interval"
    spread = f"{deciding.gap:+.2f} pp, {interval}"
    weight = "within sampling noise" if noise else "more than sampling noise"
    return f"Observation {number} {verdict} on {title}: {text}; {spread}: {weight}."
