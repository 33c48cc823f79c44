"""The page's sections on calibration: whether a model's confidence says how often it is right."""

from __future__ import annotations

from collections.abc import Iterator

from wiseft_dist.evaluate.statistics.statistics import AlphaStatistics, DatasetStatistics, Statistics
from wiseft_dist.report.curves import STRAIGHT, mark_of
from wiseft_dist.report.page.charts import Chart, Line, Point
from wiseft_dist.report.page.section import Row, Section
from wiseft_dist.report.sections.numbers import number_cell, percent_cell
from wiseft_dist.report.wording import ends_and_chosen, shown_datasets


def calibration_sections(statistics: Statistics) -> Iterator[Section]:
    """The numbers of both ends and the chosen alpha on each dataset, and the bins behind them as charts."""
    datasets = [statistics.datasets[name] for name in shown_datasets(statistics)]
    rows = [
        Row(
            f"{dataset.title}, {name}",
            (
                percent_cell(_mean_confidence(numbers)),
                percent_cell(numbers.top1),
                percent_cell(numbers.ece),
                number_cell(numbers.nll),
                number_cell(numbers.brier),
            ),
        )
        for dataset in datasets
        for name, alpha in ends_and_chosen(statistics).items()
        for numbers in (dataset.at(alpha),)
    ]
    yield Section(
        "Calibration",
        ("model", "mean confidence (%)", "right (%)", "ECE (%)", "NLL (nats)", "Brier (0 to 2)"),
        tuple(rows),
        note="A model whose mean confidence is above its accuracy is too sure of itself. Of ECE, NLL and Brier score "
        "lower is better. ECE has 15 bins of equal width and counts them all.",
    )
    if rows:
        yield Section(
            "Reliability curves",
            charts=tuple(reliability_chart(statistics, dataset) for dataset in datasets),
            note="A point is a bin of confidence: on the dotted diagonal a model is right as often as it says; under "
            "it, it is too sure of itself. Empty bins have no point.",
            is_folded=True,
        )


def reliability_chart(statistics: Statistics, dataset: DatasetStatistics) -> Chart:
    """How often a model is right, by how sure it says it is; on the diagonal the two are the same."""
    lines = [Line("as sure as right", tuple(Point(x, x) for x in (0.0, 100.0)), "dotted", STRAIGHT)]
    for name, alpha in ends_and_chosen(statistics).items():
        points = tuple(
            Point(
                100 * entry.confidence,
                100 * entry.accuracy,
                f"{name}, confidence {100 * entry.low:.0f} to {100 * entry.high:.0f} %: "
                f"{entry.num_samples:,} samples, {100 * entry.accuracy:.2f} % right",
            )
            for entry in dataset.at(alpha).reliability
            if entry.confidence is not None and entry.accuracy is not None
        )
        lines.append(Line(name, points, "curve", mark_of(statistics, alpha)[0]))
    return Chart(dataset.title, "confidence (%)", "right (%)", tuple(lines), is_small=True)


def _mean_confidence(numbers: AlphaStatistics) -> float | None:
    """Over all samples, from the bins; a fraction."""
    bins = [entry for entry in numbers.reliability if entry.confidence is not None]
    total = sum(entry.num_samples for entry in bins)
    return sum(entry.num_samples * (entry.confidence or 0.0) for entry in bins) / total if total else None
