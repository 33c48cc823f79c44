"""Which run is best, and which differences may be chance."""

from __future__ import annotations

from collections.abc import Sequence

from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.report.wording import is_known

BEST = "best"
HIGHEST = "highest, within noise"
WITHIN_NOISE = "within noise"

Number = tuple[float, Interval]


def standings(numbers: Sequence[Number | None]) -> list[str]:
    """A word for each number of a column, in order; higher is better.

    ``best``: the intervals of all others lie below its own. Where some do not, the highest number is ``highest, within
    noise`` and these others are ``within noise``. Nothing is said of the rest, of numbers that are not known, and
    where there are not two different ones.
    """
    known = [each for each in numbers if each is not None and is_known(each[0])]
    if len({value for value, _ in known}) < 2:
        return ["" for _ in numbers]
    highest, interval = max(known, key=lambda each: each[0])
    words = [_word(each, highest, interval) for each in numbers]
    is_alone = sum(bool(word) for word in words) == 1
    return [BEST if is_alone and word else word for word in words]


def _word(number: Number | None, highest: float, interval: Interval) -> str:
    if number is None or not is_known(number[0]):
        return ""
    value, own = number
    if value == highest:
        return HIGHEST
    # An interval that is not known (NaN) rules nothing out.
    return "" if own.high < interval.low else WITHIN_NOISE
