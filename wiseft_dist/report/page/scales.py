"""From numbers to places on an axis: linear, logit and logarithmic, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from wiseft_dist.report.page.charts import Scale

LOGIT_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)
"""Percent."""
LOGIT_LOWEST = 0.1
"""Percent. What is nearer to nothing or to everything is drawn here, as its logit has no end."""
LOG_LOWEST = 1e-12
"""What is below it, or above its inverse, is drawn there."""
MARGIN = 0.06
"""What is left free at both ends of an axis, as a part of what is shown."""
MARGIN_OF_ONE = 0.05
"""The same around a single value, as a part of it; around zero, and of logits and logarithms, so much itself."""
SAME = 1e-8
"""Values that differ by a smaller part are drawn as one."""
NOTHING = 1e-100
LARGEST = 1e300
"""Beyond it numbers of a training that diverged are drawn here, as their differences would overflow."""


@dataclass(frozen=True)
class Axis:
    """Where numbers stand along one side of a chart."""

    transformed: Callable[[float], float]
    low: float
    """The transformed number at ``start``."""
    high: float
    start: float
    """A coordinate of the drawing."""
    end: float
    ticks: tuple[float, ...]
    """Not transformed."""

    def at(self, value: float) -> float:
        """The coordinate of a number."""
        part = (self.transformed(value) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def axis(values: Iterable[float], scale: Scale, start: float, end: float, num_ticks: int) -> Axis:
    """An axis that shows all finite values, with a margin, and about so many ticks; none where there is no value."""
    transformed = _TRANSFORMS[scale]
    found = [transformed(value) for value in values if math.isfinite(value)]
    if not found:
        return Axis(transformed, 0.0, 1.0, start, end, ())
    low, high = min(found), max(found)
    margin = _margin(scale, low, high)
    low, high = low - margin, high + margin
    return Axis(transformed, low, high, start, end, _ticks(scale, low, high, num_ticks))


def _margin(scale: Scale, low: float, high: float) -> float:
    if scale != "linear":
        return max(MARGIN * (high - low), MARGIN_OF_ONE)
    largest = max(abs(low), abs(high))
    if high - low > max(SAME * largest, NOTHING):
        return MARGIN * (high - low)
    return MARGIN_OF_ONE * (largest if largest > NOTHING else 1.0)


def tick_text(value: float) -> str:
    """``50``, ``2.5``, ``1e-05``."""
    return f"{value:.10g}".replace("-", "−")


def _linear(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


def _logit(percent: float) -> float:
    part = min(max(percent, LOGIT_LOWEST), 100 - LOGIT_LOWEST) / 100
    return math.log(part / (1 - part))


def _log10(value: float) -> float:
    return math.log10(min(max(value, LOG_LOWEST), 1 / LOG_LOWEST))


_TRANSFORMS: dict[Scale, Callable[[float], float]] = {"linear": _linear, "logit": _logit, "log": _log10}


def _ticks(scale: Scale, low: float, high: float, count: int) -> tuple[float, ...]:
    if scale == "linear":
        return _linear_ticks(low, high, count)
    if scale == "log":
        return _log_ticks(low, high, count)
    inside = [tick for tick in LOGIT_TICKS if low <= _logit(tick) <= high]
    if len(inside) >= 3:
        return _apart(inside, (high - low) / (1.5 * count))
    # A narrow range: round percentages in it, which lie almost evenly there.
    return tuple(tick for tick in _linear_ticks(_percent(low), _percent(high), count) if 0 < tick < 100)


def _linear_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(float(f"{number * step:.14g}") for number in range(first, last + 1))


def _log_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(inside) >= 3:
            return tuple(inside[:: max(1, len(inside) // count)])
    return tuple(tick for tick in _linear_ticks(10**low, 10**high, count) if tick > 0)


def _apart(ticks: Sequence[float], distance: float) -> tuple[float, ...]:
    """Those that are far enough from the one before, starting at the middle of the scale."""
    middle = min(ticks, key=lambda tick: abs(_logit(tick)))
    above, below = [tick for tick in ticks if tick > middle], [tick for tick in reversed(ticks) if tick < middle]
    kept = [middle]
    for side in (above, below):
        last = middle
        for tick in side:
            if abs(_logit(tick) - _logit(last)) >= distance:
                kept.append(tick)
                last = tick
    return tuple(sorted(kept))


def _percent(logit: float) -> float:
    return 100 / (1 + math.exp(-logit))
