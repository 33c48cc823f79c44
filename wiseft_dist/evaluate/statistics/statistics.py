"""Every number of the report, from per-sample predictions alone: no GPU, one dataset in memory at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.evaluate.catalog.entries import entries, find_entry
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.statistics.dataset_numbers import AlphaStatistics, ClassAccuracy, DatasetStatistics, Role
from wiseft_dist.evaluate.statistics.dataset_statistics import AxisKey, Measured, Source, class_table, measure
from wiseft_dist.evaluate.statistics.intervals import NUM_RESAMPLES, Draws, Interval
from wiseft_dist.evaluate.statistics.metrics.corruption import CorruptionError, corruption_of, mean_corruption_error
from wiseft_dist.evaluate.statistics.observations import SHIFT_AVERAGE, Observation, observe
from wiseft_dist.evaluate.statistics.own_fit import own_fit
from wiseft_dist.evaluate.statistics.robustness import (
    Fit,
    Robustness,
    ShiftValue,
    effective_robustness,
    published_fits,
)
from wiseft_dist.evaluate.statistics.selection import Choice, choose_alphas, oracle_of, reported_alpha
from wiseft_dist.progress import progress_bar

__all__ = [
    "AlphaStatistics",
    "ClassAccuracy",
    "DatasetStatistics",
    "Role",
    "ShiftAverage",
    "Source",
    "Statistics",
    "statistics",
]


@dataclass(frozen=True)
class ShiftAverage:
    """The primary metrics of the shifts, averaged with equal weights."""

    alpha: float
    value: float
    """A fraction."""
    interval: Interval
    """Bootstrap; the shifts are resampled independently of each other."""


@dataclass(frozen=True)
class Statistics:
    """Every number of a report."""

    reference: str | None
    """The reference test set; the held-out piece where that stands in; None where there is neither."""
    shifts: tuple[str, ...]
    alphas: tuple[float, ...]
    """Rising."""
    datasets: dict[str, DatasetStatistics]
    """By name: the reference, the shifts, ID-val where there is one."""
    averaged_shifts: tuple[str, ...]
    """The shifts in ``shift_average``: without ImageNet-C's sets, whose number is mCE, unless there are no others."""
    shift_average: tuple[ShiftAverage, ...]
    """Rising in alpha; empty without shifts."""
    choices: tuple[Choice, ...]
    """fixed, id_val, oracle (on the average of reference and shift average): each where there is one."""
    oracles: dict[str, Choice]
    """By dataset: the alpha that is best on its own test labels. A bound, never a result."""
    chosen: float | None
    """The alpha to report: ID-val's choice, else the fixed one; ``None`` where there is neither."""
    observations: tuple[Observation, ...]
    """Both, for every dataset but ID-val and for the shift average; empty without both endpoints."""
    robustness: dict[str, Robustness]
    """By dataset, where a fit is known and its reference was evaluated."""
    corruption: tuple[CorruptionError, ...]
    """ImageNet-C by alpha; empty where no corruption was evaluated at all five severities."""
    own_fits: dict[str, Fit]
    """Fits of the user's own models, by dataset; empty where no ``robustness_fit`` is a file of models."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain lists, objects with text keys, numbers; NaN becomes null, infinities the text ``inf``."""
        content: dict[str, Any] = _plain(self)
        return content

    def shift_average_at(self, alpha: float) -> ShiftAverage | None:
        """The average over the shifts at alpha; ``None`` without shifts."""
        return next((entry for entry in self.shift_average if entry.alpha == alpha), None)


def statistics(
    sources: Iterable[Source],
    members: Sequence[Member],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Statistics:
    """Compute everything. Datasets are loaded one after the other, in any order, and none is kept.

    Args:
        sources: The datasets.
        members: What was scored: the K rows of every ``load()``. Alphas rise; those in output space come last.
        seed: Of the bootstrap: the same seed, the same numbers.
        num_resamples: Of the bootstrap.

    Raises:
        ValueError: if members are not in that order.
        UserError: if a dataset's description does not fit its samples, or a line cannot be fitted to its models.
        RunError: if a dataset has no samples.
    """
    order = sorted(range(len(members)), key=lambda index: (members[index].space == "output", members[index].alpha))
    if order != list(range(len(members))):
        raise ValueError("members must be in rising order of alpha, those in output space last")
    sources = list(sources)
    own_fits = {
        s.name: own_fit(s.name, fit)
        for s in sources
        if (fit := s.spec.robustness_fit) is not None and fit not in published_fits()
    }
    axes = {s.name: _axis(s, sources, own_fits) for s in sources if s.role == "shift"}
    measured = {}
    with progress_bar("computing statistics", total=len(sources), unit="datasets") as bar:
        for source in sources:
            bar.update(note=source.name)
            keys = {axis.key for axis in axes.values() if axis is not None and axis.reference == source.name}
            measured[source.name] = measure(source, members, axes=keys, seed=seed, num_resamples=num_resamples)
            bar.advance()
    return _Run(tuple(m.alpha for m in members if m.space == "weight"), measured, own_fits, axes).statistics()


@dataclass(frozen=True)
class _Axis:
    """What a shift's effective robustness is computed from."""

    fit: Fit
    reference: str
    key: AxisKey


def _axis(shift: Source, sources: Sequence[Source], own_fits: Mapping[str, Fit]) -> _Axis | None:
    """None without a fit, or where its reference is not among the datasets."""
    fit = own_fits.get(shift.name) or _published_fit(shift.spec)
    wanted = shift.spec.reference
    # Never the held-out piece: it is a piece of the training set, which standard models were not measured on.
    others = [s for s in sources if s.role != "id_val"]
    if wanted is None:
        names = [s.name for s in others if s.role == "reference" and shift.name in own_fits]
    else:
        entry = find_entry(wanted)
        names = [s.name for s in others if s.name == wanted]
        names += [s.name for s in others if entry is not None and s.spec.catalog == entry.name]
    if fit is None or not names:
        return None
    return _Axis(fit, names[0], AxisKey(shift.spec.reference_classes, fit.merged))


def _published_fit(spec: DatasetSpec) -> Fit | None:
    """None also where the dataset goes by another metric than the one that the line was fitted on."""
    fit = spec.robustness_fit
    metrics = {entry.spec.metric for entry in entries().values() if entry.spec.robustness_fit == fit}
    return published_fits().get(fit) if fit is not None and spec.metric in metrics else None


@dataclass(frozen=True)
class _Run:
    """All datasets, measured."""

    alphas: tuple[float, ...]
    measured: Mapping[str, Measured]
    own_fits: dict[str, Fit]
    axes: Mapping[str, _Axis | None]

    def statistics(self) -> Statistics:
        reference = next(iter(self._of_role("reference") or self._of_role("id_val")), None)
        choices = self._choices(reference)
        chosen = reported_alpha(choices)
        return Statistics(
            reference=reference,
            shifts=self._of_role("shift"),
            alphas=self.alphas,
            averaged_shifts=self._averaged(),
            datasets={name: self._with_classes(entry, chosen) for name, entry in self.measured.items()},
            shift_average=self._shift_average(),
            choices=tuple(choices),
            oracles={
                name: oracle_of(entry.statistics.values, is_shift=entry.statistics.role == "shift")
                for name, entry in self.measured.items()
                if entry.statistics.role != "id_val"
            },
            chosen=chosen,
            observations=self._observations(),
            robustness=self._robustness(),
            corruption=self._corruption(),
            own_fits=self.own_fits,
        )

    def _of_role(self, role: Role) -> tuple[str, ...]:
        return tuple(name for name, entry in self.measured.items() if entry.statistics.role == role)

    def _averaged(self) -> tuple[str, ...]:
        """75 sets of one dataset's corruptions would drown every other shift; alone they are better than no average."""
        shifts = self._of_role("shift")
        return tuple(name for name in shifts if corruption_of(self._entry(name)) is None) or shifts

    def _entry(self, name: str) -> str:
        return self.measured[name].spec.catalog or name

    def _values(self, name: str) -> dict[float, float]:
        return self.measured[name].statistics.values

    def _with_classes(self, entry: Measured, chosen: float | None) -> DatasetStatistics:
        return replace(entry.statistics, classes=class_table(entry.class_counts, self.alphas, chosen))

    def _average_draws(self) -> Draws | None:
        """Resamples of the shift average: each shift's own, as they are independent. None without shifts."""
        shifts = self._averaged()
        if not shifts:
            return None
        return Draws(np.mean([self.measured[name].draws.values for name in shifts], axis=0))

    def _average_values(self) -> np.ndarray:
        shifts = [list(self._values(name).values()) for name in self._averaged()]
        return np.asarray(np.mean(shifts, axis=0))

    def _shift_average(self) -> tuple[ShiftAverage, ...]:
        draws = self._average_draws()
        if draws is None:
            return ()
        return tuple(
            ShiftAverage(alpha, float(value), draws.interval(draws.values[:, index]))
            for index, (alpha, value) in enumerate(zip(self.alphas, self._average_values(), strict=True))
        )

    def _choices(self, reference: str | None) -> list[Choice]:
        id_val = next(iter(self._of_role("id_val")), None)
        shifts = {entry.alpha: entry.value for entry in self._shift_average()}
        return choose_alphas(
            self._values(id_val) if id_val else {},
            self._values(reference) if reference else {},
            shifts,
        )

    def _observations(self) -> tuple[Observation, ...]:
        found: list[Observation] = []
        for name, entry in self.measured.items():
            if entry.statistics.role != "id_val":
                values = np.array(list(entry.statistics.values.values()))
                found += observe(name, self.alphas, values, entry.draws, title=entry.statistics.title)
        average = self._average_draws()
        if average is not None:
            found += observe(SHIFT_AVERAGE, self.alphas, self._average_values(), average)
        return tuple(found)

    def _robustness(self) -> dict[str, Robustness]:
        found = {}
        for name, axis in self.axes.items():
            reference = None if axis is None else self.measured[axis.reference].axes.get(axis.key)
            if axis is None or reference is None:
                continue
            values = [ShiftValue(e.alpha, e.value, e.interval) for e in self.measured[name].statistics.alphas]
            result = effective_robustness(axis.fit, reference, values)
            if result is not None:
                found[name] = result
        return found

    def _corruption(self) -> tuple[CorruptionError, ...]:
        errors = {}
        for name, entry in self.measured.items():
            place = corruption_of(self._entry(name))
            if place is not None:
                errors[place] = 1 - np.array([each.top1 for each in entry.statistics.alphas])
        return mean_corruption_error(errors, self.alphas)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
