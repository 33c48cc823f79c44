"""results.csv: one row for each alpha on the reference and on each shift."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from wiseft_dist.evaluate.statistics.statistics import AlphaStatistics, DatasetStatistics, Statistics
from wiseft_dist.report.wording import is_known, shown_datasets

COLUMNS = (
    *("dataset", "role", "alpha", "num_samples", "num_correct", "top1", "ci95_low", "ci95_high"),
    *("metric", "value", "value_low", "value_high", "top5", "mean_per_class", "ece", "nll", "brier", "num_skipped"),
    *("reference_accuracy", "effective_robustness_pp", "extrapolated"),
)
"""Fractions, but for ``nll`` (nats), ``brier`` (0 to 2) and ``effective_robustness_pp`` (percentage points). A number
that a dataset does not have is an empty field."""


def to_csv(statistics: Statistics) -> str:
    """The reference first, then the shifts in their order; alphas rising."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of(statistics))
    return text.getvalue()


def rows_of(statistics: Statistics) -> Iterator[dict[str, object]]:
    """The rows, by column; a column that a row has not is empty."""
    for name in shown_datasets(statistics):
        dataset = statistics.datasets[name]
        for numbers in dataset.alphas:
            yield _of_dataset(dataset) | _of_alpha(numbers) | _robustness(statistics, name, numbers.alpha)


def _of_dataset(dataset: DatasetStatistics) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        "role": dataset.role,
        "num_samples": dataset.num_samples,
        "num_skipped": dataset.num_skipped,
        "metric": dataset.metric,
    }


def _of_alpha(numbers: AlphaStatistics) -> dict[str, object]:
    return {
        "alpha": numbers.alpha,
        "num_correct": numbers.num_correct,
        "top1": _decimal(numbers.top1),
        "ci95_low": _decimal(numbers.top1_interval.low),
        "ci95_high": _decimal(numbers.top1_interval.high),
        "value": _decimal(numbers.value),
        "value_low": _decimal(numbers.interval.low),
        "value_high": _decimal(numbers.interval.high),
        "top5": _decimal(numbers.top5),
        "mean_per_class": _decimal(numbers.mean_per_class),
        "ece": _decimal(numbers.ece),
        "nll": _decimal(numbers.nll),
        "brier": _decimal(numbers.brier),
    }


def _robustness(statistics: Statistics, name: str, alpha: float) -> dict[str, object]:
    if name not in statistics.robustness:
        return {}
    point = statistics.robustness[name].at(alpha)
    return {
        "reference_accuracy": _decimal(point.reference),
        "effective_robustness_pp": f"{point.effective_robustness:.4f}",
        "extrapolated": "" if point.extrapolated is None else str(point.extrapolated).lower(),
    }


def _decimal(value: float | None) -> str:
    return f"{value:.6f}" if is_known(value) else ""
