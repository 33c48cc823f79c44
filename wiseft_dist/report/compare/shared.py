"""What runs can be compared on: the datasets that all of them were evaluated on, in the same role and by one metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.statistics.statistics import ShiftAverage, Statistics
from wiseft_dist.report.compare.combined import mean_interval
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.wording import metric_name, shown_datasets

ROLES = {"reference": "the reference", "shift": "a shift", "id_val": "the held-out piece"}


@dataclass(frozen=True)
class Shared:
    """The datasets of a comparison."""

    datasets: tuple[str, ...]
    """In the order of the first run."""
    left_out: tuple[str, ...]
    """A sentence for each dataset that cannot be compared, or for several of them."""


def shared_datasets(runs: Sequence[Compared]) -> Shared:
    """What all runs have.

    Raises:
        UserError: if that is nothing.
    """
    names = list(dict.fromkeys(name for run in runs for name in shown_datasets(run.statistics)))
    reasons = {name: _why_not(name, runs) for name in names}
    shared = tuple(name for name in names if reasons[name] is None)
    sentences = tuple(sentence for sentence in reasons.values() if sentence)
    if not shared:
        raise UserError(f"these runs share no dataset, so there is nothing to compare: {' '.join(sentences)}")
    return Shared(shared, sentences)


def narrowed(runs: Sequence[Compared], shared: Shared) -> tuple[Compared, ...]:
    """The runs with the shared datasets alone, and the held-out piece; the shift average is over the shared shifts."""
    averaged = [set(run.statistics.averaged_shifts) for run in runs]
    common = set(shared.datasets).intersection(*averaged)
    return tuple(replace(run, statistics=_narrowed(run.statistics, shared.datasets, common)) for run in runs)


def _why_not(name: str, runs: Sequence[Compared]) -> str | None:
    """Why a dataset is not compared; None if it is."""
    without = [run.name for run in runs if name not in shown_datasets(run.statistics)]
    if without:
        return f"{name} is left out: {', '.join(without)} {'has' if len(without) == 1 else 'have'} no results on it."
    for what in (_roles(name, runs), _metrics(name, runs)):
        if len(set(what)) > 1:
            told = ", ".join(f"{each} in {run.name}" for each, run in zip(what, runs, strict=True))
            return f"{name} is left out: it is {told}."
    return None


def _roles(name: str, runs: Sequence[Compared]) -> list[str]:
    return [ROLES[run.statistics.datasets[name].role] for run in runs]


def _metrics(name: str, runs: Sequence[Compared]) -> list[str]:
    return [f"measured by {metric_name(run.statistics.datasets[name])}" for run in runs]


def _narrowed(statistics: Statistics, shared: Sequence[str], common: set[str]) -> Statistics:
    shifts = tuple(name for name in shared if name in statistics.shifts)
    averaged = tuple(name for name in shifts if name in common) or shifts
    is_same = set(averaged) == set(statistics.averaged_shifts)
    kept = [*shared, *(name for name, each in statistics.datasets.items() if each.role == "id_val")]
    return replace(
        statistics,
        reference=statistics.reference if statistics.reference in shared else None,
        shifts=shifts,
        datasets={name: statistics.datasets[name] for name in dict.fromkeys(kept)},
        averaged_shifts=averaged,
        shift_average=statistics.shift_average if is_same else tuple(_average(statistics, averaged)),
        # What saw all shifts was chosen on others than those that are left.
        choices=tuple(choice for choice in statistics.choices if is_same or choice.name != "oracle"),
        observations=(),
        robustness={name: each for name, each in statistics.robustness.items() if name in shifts},
    )


def _average(statistics: Statistics, shifts: Sequence[str]) -> Iterator[ShiftAverage]:
    """The shifts are different samples: what the interval of their mean is follows from theirs."""
    for alpha in statistics.alphas if shifts else ():
        numbers = [statistics.datasets[name].at(alpha) for name in shifts]
        values = [each.value for each in numbers]
        yield ShiftAverage(alpha, sum(values) / len(values), mean_interval(values, [each.interval for each in numbers]))
