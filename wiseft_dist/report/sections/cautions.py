"""What a reader of the report should know before trusting its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from wiseft_dist.evaluate.statistics.statistics import DatasetStatistics, Statistics
from wiseft_dist.report.history import History

FEW_CLUSTERS = 30
"""Below about this many, intervals that draw clusters come out too narrow."""
NOTICEABLE = 0.5
"""Percentage points of effective robustness that are worth a sentence."""
MAX_WARNINGS = 8
"""Of a run's own warnings, so many are repeated on the page; the last ones."""


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


def history_cautions(history: History) -> list[str]:
    """What went differently than it should while the run was made; a sentence each."""
    return [*_codes(history), *_restarts(history), *_training(history), *_warnings(history)]


def _codes(history: History) -> list[str]:
    """Of what made weights and cells; a report may be written again by any code."""
    told = (each.event.get("code") for each in history.attempts if each.stage != "report")
    codes = dict.fromkeys(str(code) for code in told if code)  # attempts of old versions told none
    if len(codes) < 2:
        return []
    return [f"The run was made by {len(codes)} different states of the code ({', '.join(codes)}): see Software."]


def _restarts(history: History) -> list[str]:
    found = []
    stages = dict.fromkeys(attempt.stage for attempt in history.attempts if attempt.stage != "report")
    for stage in stages:
        requeues = sum(attempt.is_requeued for attempt in history.attempts if attempt.stage == stage)
        if requeues:
            found.append(f"{stage} was requeued {requeues:,} time{'' if requeues == 1 else 's'} and went on.")
        failures = history.failures.get(stage, 0)
        if failures:
            found.append(f"{stage} failed {failures:,} time{'' if failures == 1 else 's'} before it was finished.")
    return found


def _training(history: History) -> list[str]:
    found = []
    for training in history.trainings.values():
        if training.num_bad_steps:
            steps = f"{training.num_bad_steps:,} step{'' if training.num_bad_steps == 1 else 's'}"
            found.append(f"{training.stage}: {steps} had gradients that are no numbers and changed no weight.")
        if training.skipped:
            found.append(
                f"{training.stage}: {_samples(len(training.skipped))} of the training set could not be used, such as "
                f"{training.skipped.first}."
            )
    return found


def _warnings(history: History) -> list[str]:
    """What the run warned of; W&B among it, where it does not have everything."""
    last = list(history.warnings.last)[-MAX_WARNINGS:]
    told = [text if text.endswith((".", "!", "?")) else f"{text}." for text in last]
    left_out = len(history.warnings) - len(told)
    earlier = f"{left_out:,} earlier warning{' is' if left_out == 1 else 's are'} in events.jsonl."
    return [*told, *([earlier] if left_out else [])]


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
