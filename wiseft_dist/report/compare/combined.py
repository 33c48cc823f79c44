"""Intervals of what is computed from numbers of different samples, from the intervals of these numbers alone.

Source: Zou and Donner, Construction of confidence limits about effect measures: a general approach (Statistics in
Medicine 27, 2008), equations 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from wiseft_dist.evaluate.statistics.intervals import Interval


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Of the mean of independent numbers, in their unit; NaN where one of the intervals is."""
    below = math.hypot(*(value - each.low for value, each in zip(values, intervals, strict=True)))
    above = math.hypot(*(each.high - value for value, each in zip(values, intervals, strict=True)))
    mean, count = sum(values) / len(values), len(values)
    return Interval(mean - below / count, mean + above / count, "combined")


def difference_interval(first: float, first_range: Interval, second: float, second_range: Interval) -> Interval:
    """Of first minus second, in their unit. Where both are of the same samples, it is too wide."""
    below = math.hypot(first - first_range.low, second_range.high - second)
    above = math.hypot(first_range.high - first, second - second_range.low)
    return Interval(first - second - below, first - second + above, "combined")
