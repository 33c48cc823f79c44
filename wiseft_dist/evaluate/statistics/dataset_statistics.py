"""The numbers of one dataset: every alpha, the endpoints against each other, its classes."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.evaluate.class_map import load_class_map
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.statistics.diversity import Diversity, diversity
from wiseft_dist.evaluate.statistics.intervals import Clusters, Draws, Interval, bootstrap, clopper_pearson
from wiseft_dist.evaluate.statistics.metrics.accuracy import class_counts, mean_of_known, single_labels, top5
from wiseft_dist.evaluate.statistics.metrics.calibration import (
    ReliabilityBin,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from wiseft_dist.evaluate.statistics.metrics.primary import Primary, column, group_name, primary_metric
from wiseft_dist.evaluate.statistics.metrics.tally import Tally, proportion, ratio
from wiseft_dist.evaluate.statistics.metrics.wilds import group_accuracies
from wiseft_dist.evaluate.statistics.paired import Comparison, Endpoint, compare
from wiseft_dist.evaluate.statistics.robustness import ReferenceAxis, reference_axis

Role = Literal["reference", "shift", "id_val"]


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

    def load(self) -> Predictions:
        """The predictions of all members, in their order. Nothing else holds on to them."""


@dataclass(frozen=True)
class AlphaStatistics:
    """One alpha on one dataset. Accuracies, intervals, ECE: fractions."""

    alpha: float
    value: float
    """The dataset's primary metric (``DatasetStatistics.metric``)."""
    interval: Interval
    """Of ``value``: Clopper-Pearson for a proportion of unclustered samples, otherwise bootstrap."""
    num_correct: int
    """Samples whose most likely class is (one of) the right one(s)."""
    top1: float
    """``num_correct`` over all samples (of a video set: all frames)."""
    top1_interval: Interval
    """Clopper-Pearson; bootstrap of clusters where the dataset asks for it."""
    top5: float
    """Fraction with a right class among the five most likely."""
    mean_per_class: float | None
    """Mean over the classes with samples of the accuracy on each; ``None`` with several right labels a sample."""
    ece: float
    """Expected calibration error, 15 equal-width bins, all of them."""
    nll: float
    """Mean negative log-likelihood of the right class, in nats."""
    brier: float
    """Mean squared distance between the class probabilities and the right class, between 0 and 2."""
    reliability: tuple[ReliabilityBin, ...]
    """The 15 bins behind ``ece``."""
    groups: dict[str, float]
    """Accuracy by group where the dataset has groups (excluded ones too), by name; otherwise empty."""
    pm_k: float | None
    """Fraction of anchors that are right with all their neighbours; ``None`` unless the metric is pm0."""


@dataclass(frozen=True)
class ClassAccuracy:
    """One class at three alphas; ``None`` where that alpha was not evaluated."""

    label: int
    num_samples: int
    zero_shot: float | None
    """Accuracy at alpha 0, a fraction."""
    chosen: float | None
    """Accuracy at ``Statistics.chosen``, a fraction."""
    finetuned: float | None
    """Accuracy at alpha 1, a fraction."""


@dataclass(frozen=True)
class DatasetStatistics:
    """All that is known of one dataset."""

    name: str
    title: str
    """What tables and figures call it."""
    role: Role
    metric: str
    """Of ``value``: top1, mean_per_class, macro_f1, worst_group or pm0."""
    num_units: int
    """What the metric counts: anchors for pm0, otherwise samples."""
    num_samples: int
    """Samples that were scored."""
    num_skipped: int
    """Samples that could not be decoded: they count in no number."""
    alphas: tuple[AlphaStatistics, ...]
    """Rising in alpha."""
    output_space: tuple[AlphaStatistics, ...]
    """Ensembles of outputs instead of weights, for comparison; empty where they were not evaluated."""
    comparisons: tuple[Comparison, ...]
    """Each alpha against the endpoints that were evaluated; fine-tuned against zero-shot once."""
    diversity: Diversity | None
    """``None`` unless both endpoints were evaluated."""
    classes: tuple[ClassAccuracy, ...]
    """Classes with samples, by label; empty with several right labels a sample."""
    group: str | None = None
    """The column of ``AlphaStatistics.groups``, such as ``region``; None without groups."""

    def at(self, alpha: float) -> AlphaStatistics:
        """The numbers of one alpha."""
        return next(entry for entry in self.alphas if entry.alpha == alpha)

    @property
    def values(self) -> dict[float, float]:
        """The primary metric by alpha, fractions."""
        return {entry.alpha: entry.value for entry in self.alphas}

    def compared(self, alpha: float, against: Endpoint) -> Comparison | None:
        """Alpha against an endpoint, where that was done."""
        return next((c for c in self.comparisons if c.alpha == alpha and c.against == against), None)


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
        group=spec.group,
    )
    if counts is not None:
        counts = ClassCounts(counts.num_samples, counts.num_correct[: len(alphas)])
    return Measured(spec, statistics, in_weight_space, counts, _axes(source.name, labels, predictions, alphas, axes))


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
            groups={group_name(spec, group): float(accuracy[index]) for group, accuracy in groups.items()},
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
