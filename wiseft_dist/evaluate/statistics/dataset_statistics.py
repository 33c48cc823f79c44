"""The numbers of one dataset: every alpha, the endpoints against each other, its classes."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.evaluate.catalog.entries import find_entry
from wiseft_dist.evaluate.class_map import load_class_map
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.statistics.dataset_numbers import AlphaStatistics, ClassAccuracy, DatasetStatistics, Role
from wiseft_dist.evaluate.statistics.diversity import diversity
from wiseft_dist.evaluate.statistics.intervals import Clusters, Draws, Interval, bootstrap, clopper_pearson
from wiseft_dist.evaluate.statistics.metrics.accuracy import class_counts, mean_of_known, single_labels, top5
from wiseft_dist.evaluate.statistics.metrics.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from wiseft_dist.evaluate.statistics.metrics.primary import (
    Primary,
    column,
    named_groups,
    primary_metric,
    refuse_unknown,
)
from wiseft_dist.evaluate.statistics.metrics.tally import Tally, proportion, ratio
from wiseft_dist.evaluate.statistics.metrics.wilds import group_accuracies
from wiseft_dist.evaluate.statistics.paired import compare
from wiseft_dist.evaluate.statistics.robustness import ReferenceAxis, reference_axis


class Source(Protocol):
    """A dataset whose predictions can be loaded when it is its turn."""

    @property
    def name(self) -> str:
        """Its name in the run."""

    @property
    def spec(self) -> DatasetSpec:
        """All that is known of it, the catalog's fields included."""

    @property
    def role(self) -> Role:
        """Whether it is the reference, a shift, or the held-out piece of the training set."""

    @property
    def class_map(self) -> str | None:
        """The map from the head's classes to its own; None where they are the same."""

    def load(self) -> Predictions:
        """The predictions of all members, in their order. Nothing else holds on to them."""


@dataclass(frozen=True)
class AxisKey:
    """What the reference axis of a shift is restricted to."""

    class_map: str | None
    """The class map that leads to the shift's classes; None: all classes."""
    merged: bool
    """Whether classes of one group count as one."""

    def groups(self) -> tuple[tuple[int, ...], ...] | None:
        """The reference's classes behind each of the shift's; None: all."""
        return None if self.class_map is None else load_class_map(self.class_map, "reference_classes").groups


@dataclass(frozen=True)
class ClassCounts:
    """How often each class is right."""

    num_samples: np.ndarray
    """int64 ``[classes]``."""
    num_correct: np.ndarray
    """int64 ``[K, classes]``."""


@dataclass(frozen=True)
class Measured:
    """A dataset's numbers, and what the run's numbers are computed from once all datasets are through."""

    spec: DatasetSpec
    statistics: DatasetStatistics
    """Without ``classes``: the chosen alpha is not known yet."""
    draws: Draws
    """Of the primary metric, over the weight-space alphas."""
    class_counts: ClassCounts | None
    """Of the weight-space alphas; None with several right labels a sample."""
    axes: Mapping[AxisKey, ReferenceAxis]
    """What shifts need of it as their reference."""


def measure(
    source: Source, members: Sequence[Member], *, axes: Collection[AxisKey] = (), seed: int, num_resamples: int
) -> Measured:
    """Load one dataset and compute all that is its own.

    Args:
        source: The dataset.
        members: What was scored: rising alphas in weight space, then any in output space.
        axes: What shifts need of it as their reference.
        seed: Of the bootstrap. Datasets of other names draw independently.
        num_resamples: Of the bootstrap.
    """
    predictions, spec = source.load(), source.spec
    refuse_unknown(source.name, members, predictions)
    correct = predictions.correct
    primary = primary_metric(source.name, spec, predictions, correct)
    seeds = (seed, zlib.crc32(source.name.encode()))
    draws = bootstrap(primary.tally, seed=seeds, num_resamples=num_resamples, clusters=primary.clusters)
    labels = single_labels(predictions.labels)
    counts = None if labels is None else ClassCounts(*class_counts(labels, correct))
    alphas = [member.alpha for member in members if member.space == "weight"]
    entries = _entries(source.name, spec, members, predictions, correct, primary, draws, counts)
    in_weight_space = replace(draws, values=draws.values[:, : len(alphas)])
    values = np.array([entry.value for entry in entries[: len(alphas)]])
    statistics = DatasetStatistics(
        name=source.name,
        title=spec.title or source.name,
        role=source.role,
        metric=spec.metric,
        num_units=primary.tally.num_units,
        num_samples=len(predictions),
        num_skipped=len(predictions.bad),
        alphas=entries[: len(alphas)],
        output_space=entries[len(alphas) :],
        comparisons=compare(alphas, values, in_weight_space, primary.correct[: len(alphas)]),
        diversity=diversity(predictions, alphas),
        classes=(),
        num_published_units=_published_units(spec),
        group=spec.group,
        class_map=source.class_map,
    )
    if counts is not None:
        counts = ClassCounts(counts.num_samples, counts.num_correct[: len(alphas)])
    return Measured(spec, statistics, in_weight_space, counts, _axes(source.name, labels, predictions, alphas, axes))


def _published_units(spec: DatasetSpec) -> int | None:
    entry = find_entry(spec.catalog) if spec.metric == "pm0" and spec.catalog else None
    return None if entry is None else entry.num_anchors


def _axes(
    name: str, labels: np.ndarray | None, predictions: Predictions, alphas: Sequence[float], keys: Collection[AxisKey]
) -> dict[AxisKey, ReferenceAxis]:
    """Those that were asked for; none with several right labels a sample."""
    if labels is None:
        return {}
    top5s = predictions.top5[: len(alphas)]
    return {key: reference_axis(name, labels, top5s, key.groups(), merged=key.merged) for key in keys}


def class_table(counts: ClassCounts | None, alphas: Sequence[float], chosen: float | None) -> tuple[ClassAccuracy, ...]:
    """Accuracy on each class with samples, at zero-shot, the chosen alpha and fine-tuned."""
    if counts is None:
        return ()

    def accuracies(alpha: float | None) -> np.ndarray | None:
        found = [index for index, each in enumerate(alphas) if each == alpha]
        return ratio(counts.num_correct[found[0]], counts.num_samples) if found else None

    zero_shot, best, finetuned = accuracies(0.0), accuracies(chosen), accuracies(1.0)
    return tuple(
        ClassAccuracy(
            label,
            int(counts.num_samples[label]),
            *(None if column is None else float(column[label]) for column in (zero_shot, best, finetuned)),
        )
        for label in map(int, np.flatnonzero(counts.num_samples))
    )


def _entries(
    name: str,
    spec: DatasetSpec,
    members: Sequence[Member],
    predictions: Predictions,
    correct: np.ndarray,
    primary: Primary,
    draws: Draws,
    counts: ClassCounts | None,
) -> tuple[AlphaStatistics, ...]:
    """One for each member, in their order."""
    values, intervals = primary.tally.values, _intervals(primary.tally, draws)
    top1_intervals = intervals
    if spec.metric != "top1":
        clusters = None
        if spec.cluster is not None:
            clusters = Clusters(spec.cluster, column(name, spec.cluster, "cluster", predictions))
        top1_intervals = _top1_intervals(correct, clusters, draws)
    groups = {} if spec.group is None else group_accuracies(column(name, spec.group, "group", predictions), correct)
    names = named_groups(spec)
    top5s = top5(predictions.labels, predictions.top5)
    per_class = None if counts is None else mean_of_known(ratio(counts.num_correct, counts.num_samples))

    def entry(index: int) -> AlphaStatistics:
        bins = reliability(predictions.confidences[index], correct[index])
        return AlphaStatistics(
            alpha=members[index].alpha,
            value=float(values[index]),
            interval=intervals[index],
            num_correct=int(correct[index].sum()),
            top1=float(correct[index].mean()),
            top1_interval=top1_intervals[index],
            top5=float(top5s[index]),
            mean_per_class=None if per_class is None else float(per_class[index]),
            ece=expected_calibration_error(bins),
            nll=negative_log_likelihood(predictions.log_probs[index]),
            brier=brier_score(predictions.briers[index]),
            reliability=bins,
            groups={names.get(group, str(group)): float(accuracy[index]) for group, accuracy in groups.items()},
            pm_k=None if primary.anchors is None else float(primary.anchors.pm_k[index].mean()),
        )

    return tuple(entry(index) for index in range(len(members)))


def _intervals(tally: Tally, draws: Draws) -> list[Interval]:
    """Exact where the metric is a proportion of independent units, otherwise percentiles of the draws."""
    if tally.correct is not None and draws.cluster is None:
        return clopper_pearson(tally.correct.sum(axis=1), tally.num_units)
    return [draws.interval(draws.values[:, index]) for index in range(draws.values.shape[1])]


def _top1_intervals(correct: np.ndarray, clusters: Clusters | None, draws: Draws) -> list[Interval]:
    """Of top-1 where that is not the dataset's metric."""
    if clusters is None:
        return clopper_pearson(correct.sum(axis=1), correct.shape[1])
    tally = proportion(correct)
    return _intervals(tally, bootstrap(tally, seed=draws.seed, num_resamples=len(draws.values), clusters=clusters))
