"""What a reader of the report should know before trusting its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from wiseft_dist.evaluate.statistics.statistics import DatasetStatistics, Statistics

FEW_CLUSTERS = 30
"""Below about this many, intervals that draw clusters come out too narrow."""
NOTICEABLE = 0.5
"""Percentage points of effective robustness that are worth a sentence."""


def cautions(statistics: Statistics, published_counts: Mapping[str, int]) -> list[str]:
    """One sentence each; an empty list where there is nothing to say.

    Args:
        statistics: Of the run.
        published_counts: How many samples a dataset should have, where that is known.
    """
    datasets = list(statistics.datasets.values())
    found = [
        *_skipped(datasets),
        *_other_counts(datasets, published_counts),
        *_anchors(datasets),
        *_few_clusters(datasets),
        *_extrapolated(statistics),
    ]
    if not any(dataset.role == "id_val" for dataset in datasets):
        found.append(
            "No alpha was chosen by validation: nothing was held out of the training set. Only a fixed alpha is honest."
        )
    return found


def _skipped(datasets: list[DatasetStatistics]) -> list[str]:
    return [
        f"{dataset.name}: {_samples(dataset.num_skipped)} could not be decoded and "
        f"count{'s' if dataset.num_skipped == 1 else ''} in no number."
        for dataset in datasets
        if dataset.num_skipped
    ]


def _other_counts(datasets: list[DatasetStatistics], published_counts: Mapping[str, int]) -> list[str]:
    found = []
    for dataset in datasets:
        count = dataset.num_samples + dataset.num_skipped
        published = published_counts.get(dataset.name, count)
        if dataset.role != "id_val" and count != published:
            found.append(
                f"{dataset.name} has {_samples(count)} here and {published:,} as published: its numbers cannot be "
                "compared with published ones."
            )
    return found


def _anchors(datasets: list[DatasetStatistics]) -> list[str]:
    found = []
    for dataset in datasets:
        published = dataset.num_published_units
        if published is not None and dataset.role != "id_val" and dataset.num_units != published:
            found.append(
                f"{dataset.name} has {dataset.num_units:,} anchors here and {published:,} as published: its numbers "
                "cannot be compared with published ones."
            )
        if dataset.num_skipped and dataset.alphas[0].pm_k is not None:
            found.append(
                f"{dataset.name}: a skipped frame may be a neighbour, which pm-k then does not look at: pm-k may be "
                "too high."
            )
    return found


def _few_clusters(datasets: list[DatasetStatistics]) -> list[str]:
    found = []
    for dataset in datasets:
        interval = dataset.alphas[0].interval
        if interval.num_clusters == 1:
            found.append(
                f"{dataset.name}: all its samples belong together (by {interval.cluster}), so there are no intervals."
            )
        elif interval.num_clusters is not None and interval.num_clusters < FEW_CLUSTERS:
            found.append(
                f"{dataset.name}: its intervals draw {interval.num_clusters} groups of samples that belong together "
                f"(by {interval.cluster}); so few make them too narrow."
            )
    return found


def _extrapolated(statistics: Statistics) -> list[str]:
    found = []
    for name, robustness in statistics.robustness.items():
        alphas = [f"{point.alpha:g}" for point in robustness.points if point.extrapolated]
        if alphas:
            found.append(
                f"{name}: at alpha {', '.join(alphas)} the accuracy on {robustness.reference} lies outside what the "
                "line of the standard models was fitted on; effective robustness is extrapolated there."
            )
        lower = max(point.effective_robustness - point.lowest for point in robustness.points)
        if lower >= NOTICEABLE:
            found.append(
                f"{name}: which of its classes is the likeliest on {robustness.reference} is not known where none is "
                f"among the five kept; effective robustness may be up to {lower:.1f} pp lower."
            )
    return found


def _samples(count: int) -> str:
    return f"{count:,} sample{'' if count == 1 else 's'}"
