"""By how much runs differ from the first: paired where both were asked about the same samples, else by intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wiseft_dist.evaluate.statistics.intervals import Draws, Interval
from wiseft_dist.evaluate.statistics.observations import SHIFT_AVERAGE
from wiseft_dist.evaluate.statistics.paired import McNemar, holm, mcnemar
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.progress import progress_bar
from wiseft_dist.report.compare.combined import difference_interval
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.compare.pairing import Model, Pairs, cells_of, pair_up
from wiseft_dist.report.wording import shown_datasets

Which = Callable[[Statistics], float | None]
"""Which alpha of a run is meant; None where it has none such."""


def chosen(statistics: Statistics) -> float | None:
    """The alpha to report."""
    return statistics.chosen if statistics.chosen in statistics.alphas else None


def finetuned(statistics: Statistics) -> float | None:
    """The plain fine-tuned model."""
    return 1.0 if 1.0 in statistics.alphas else None


MODELS: dict[str, Which] = {"chosen": chosen, "fine-tuned": finetuned}
"""What is compared of each run."""


@dataclass(frozen=True)
class Difference:
    """A run against the first one, on a dataset or on the average over the shifts."""

    run: str
    model: str
    """Of :data:`MODELS`."""
    dataset: str
    """Or ``shift average``."""
    value: float
    """Of the dataset's metric, in percentage points: the run's minus the first one's."""
    interval: Interval
    """In percentage points."""
    test: McNemar | None = None
    """On the same samples; None where they are not the same, and of the average over the shifts."""
    adjusted_p_value: float | None = None
    """McNemar's, after Holm's correction for all comparisons of this dataset."""
    reason: str = ""
    """Why it is not paired: a phrase; empty where it is."""

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``the same``; ``within noise`` where the interval has 0 in it or is not known."""
        if self.value == self.interval.low == self.interval.high == 0:
            return "the same"
        return "better" if self.interval.low > 0 else "worse" if self.interval.high < 0 else "within noise"


def differences(runs: Sequence[Compared]) -> tuple[Difference, ...]:
    """Of every run but the first, for every model and dataset that both have, and for the average over the shifts."""
    names = shown_datasets(runs[0].statistics)
    alphas = {run.name: sorted({a for of in MODELS.values() if (a := of(run.statistics)) is not None}) for run in runs}
    cells = {run.name: cells_of(run) for run in runs}
    found: list[Difference] = []
    pairs: dict[str, Pairs] = {}
    with progress_bar("compare", total=len(names), unit="datasets") as bar:
        for name in names:
            pairs[name] = pair_up(name, runs, cells, alphas)
            found += of_dataset(name, runs, pairs[name])
            # Resamples are needed again for the average, answers to single samples are not.
            pairs[name] = _without_samples(pairs[name])
            bar.advance()
    found += _of_average(runs, pairs)
    return tuple(found)


def of_dataset(name: str, runs: Sequence[Compared], pairs: Pairs) -> tuple[Difference, ...]:
    """Of every run but the first on one dataset: paired as far as the pairs go."""
    return tuple(_with_holm(list(_of_dataset(name, runs, pairs))))


def _of_dataset(name: str, runs: Sequence[Compared], pairs: Pairs) -> Iterator[Difference]:
    for run, model, before, after in _models(runs):
        found = _paired(name, pairs, Model(runs[0].name, before), Model(run.name, after), model)
        yield found or _unpaired(name, runs[0], before, run, after, model, pairs.reasons.get(run.name, "no such cells"))


def _models(runs: Sequence[Compared]) -> Iterator[tuple[Compared, str, float, float]]:
    """Each run but the first, a model that both have, its alpha in the first and its alpha in the run."""
    for model, of in MODELS.items():
        for run in runs[1:]:
            before, after = of(runs[0].statistics), of(run.statistics)
            if before is not None and after is not None:
                yield run, model, before, after


def _paired(name: str, pairs: Pairs, first: Model, second: Model, model: str) -> Difference | None:
    found = _on_same(pairs, first, second)
    if found is None or pairs.same is None:
        return None
    same = pairs.same
    before, after = same.models.index(first), same.models.index(second)
    test = mcnemar(same.correct[after], same.correct[before])
    return Difference(second.run, model, name, found.value, same.draws.interval(found.draws), test)


def _unpaired(
    name: str, first: Compared, before: float, run: Compared, after: float, model: str, reason: str
) -> Difference:
    then, now = first.statistics.datasets[name].at(before), run.statistics.datasets[name].at(after)
    interval = _in_points(difference_interval(now.value, now.interval, then.value, then.interval))
    return Difference(run.name, model, name, 100 * (now.value - then.value), interval, reason=reason)


def _in_points(interval: Interval) -> Interval:
    return replace(interval, low=100 * interval.low, high=100 * interval.high)


def _with_holm(found: Sequence[Difference]) -> Iterator[Difference]:
    """With p-values that allow for how many comparisons there are on this dataset."""
    tested = [each.test.p_value for each in found if each.test is not None]
    adjusted = iter(holm(tested))
    for each in found:
        yield each if each.test is None else replace(each, adjusted_p_value=next(adjusted))


def _without_samples(pairs: Pairs) -> Pairs:
    if pairs.same is None:
        return pairs
    return replace(pairs, same=replace(pairs.same, correct=pairs.same.correct[:, :0]))


def _of_average(runs: Sequence[Compared], pairs: Mapping[str, Pairs]) -> Iterator[Difference]:
    """The shifts' resamples are averaged as the shifts are; they are independent of each other.

    Paired, the value too is that of the samples which no run skipped: value and interval are of the same samples.
    """
    shifts = runs[0].statistics.averaged_shifts
    for run, model, before, after in _models(runs) if shifts else ():
        then, now = runs[0].statistics.shift_average_at(before), run.statistics.shift_average_at(after)
        assert then is not None and now is not None
        ends = Model(runs[0].name, before), Model(run.name, after)
        paired = [each for name in shifts if (each := _on_same(pairs[name], *ends)) is not None]
        if len(paired) == len(shifts):
            value = float(np.mean([each.value for each in paired]))
            average = np.mean([each.draws for each in paired], axis=0)
            interval = Draws(average[:, None]).interval(average)
            yield Difference(run.name, model, SHIFT_AVERAGE, value, interval)
        else:
            value = 100 * (now.value - then.value)
            interval = _in_points(difference_interval(now.value, now.interval, then.value, then.interval))
            reason = "not every shift is paired"
            yield Difference(run.name, model, SHIFT_AVERAGE, value, interval, reason=reason)


@dataclass(frozen=True)
class _OnSame:
    """A difference on the samples that all runs have, in percentage points."""

    value: float
    draws: np.ndarray
    """On each resample, ``[num_resamples]``."""


def _on_same(pairs: Pairs, first: Model, second: Model) -> _OnSame | None:
    """None where it is not paired."""
    same = pairs.same
    if same is None or first not in same.models or second not in same.models:
        return None
    before, after = same.models.index(first), same.models.index(second)
    value = 100 * float(same.values[after] - same.values[before])
    return _OnSame(value, np.asarray(100 * (same.draws.values[:, after] - same.draws.values[:, before])))
