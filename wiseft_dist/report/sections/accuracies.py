"""The page's sections on accuracy: the models worth naming, the paper's observations, every alpha, groups."""

from __future__ import annotations

from collections.abc import Iterator

from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.curves import dataset_charts, mark_of, trade_off
from wiseft_dist.report.page.section import Cell, KeyNumbers, Row, Section
from wiseft_dist.report.sections.numbers import (
    alpha_cell,
    percent_cell,
    percent_row,
    percent_with_interval,
    points_cell,
)
from wiseft_dist.report.sections.selection import selection_sentence
from wiseft_dist.report.table import named_alphas
from wiseft_dist.report.wording import (
    column_name,
    ends_and_chosen,
    has_both,
    is_known,
    metric_name,
    points,
    shown_datasets,
)

MAX_OBSERVATIONS = 12
"""Sentences that are shown unasked; of many datasets there are too many to read."""
INTERVALS = (
    "In percent, with 95 % intervals: Clopper-Pearson for proportions of independent samples, bootstrap for the rest."
)


def lead_sections(statistics: Statistics) -> Iterator[Section]:
    """What is seen first: the paper's figure beside the numbers that matter, and the models worth naming."""
    yield Section(
        "The trade-off" if has_both(statistics) else "Accuracy over alpha",
        charts=(trade_off(statistics),),
        key_numbers=tuple(_key_numbers(statistics)),
        note="In percent, with 95 % intervals as bars; in brackets the change from zero-shot in percentage points.",
        identity="curve",
    )
    yield _in_short(statistics)


def accuracy_sections(statistics: Statistics) -> Iterator[Section]:
    """Those that have something to show, in the order of the page."""
    yield Section(
        "Each dataset",
        charts=dataset_charts(statistics),
        note="Bars are 95 % intervals. The dotted line mixes the accuracies of the ends; the dashed one is what "
        "standard models reach, where that is known. The numbers are under Every alpha.",
    )
    if statistics.observations:
        yield Section(
            "The paper's observations",
            sentences=tuple(observation.sentence for observation in statistics.observations),
            note="Source: arXiv 2109.01903, section 4. Within noise: the paired bootstrap allows the opposite too.",
            is_folded=len(statistics.observations) > MAX_OBSERVATIONS,
        )
    yield _every_alpha(statistics)
    yield from _groups(statistics)
    yield from _output_space(statistics)
    yield from _corruption(statistics)


def _key_numbers(statistics: Statistics) -> Iterator[KeyNumbers]:
    """Zero-shot, the alpha to report and fine-tuned, with their differences to zero-shot."""
    first = dict(_key_values(statistics, 0.0)) if 0.0 in statistics.alphas else {}
    for name, alpha in ends_and_chosen(statistics).items():
        numbers = tuple(
            (what, percent_cell(value, _gain(value, first.get(what)) if alpha else ""))
            for what, value in _key_values(statistics, alpha)
        )
        yield KeyNumbers(name, numbers, f"alpha {alpha:g}", *mark_of(statistics, alpha))


def _key_values(statistics: Statistics, alpha: float) -> Iterator[tuple[str, float]]:
    """What stands in large type, fractions."""
    if statistics.reference is not None:
        reference = statistics.datasets[statistics.reference]
        yield f"{reference.title}, {metric_name(reference)}", reference.at(alpha).value
    if average := statistics.shift_average_at(alpha):
        yield "shift average", average.value


def _gain(value: float, first: float | None) -> str:
    return f"({points(100 * (value - first))} pp)" if is_known(first) and is_known(value) else ""


def _columns(statistics: Statistics) -> tuple[str, ...]:
    reference = [] if statistics.reference is None else [column_name(statistics, statistics.reference)]
    shifts = [column_name(statistics, name) for name in statistics.shifts]
    return (*reference, *(["shift average"] if shifts else []), *shifts)


def _values(statistics: Statistics, alpha: float) -> Iterator[Cell]:
    for name in shown_datasets(statistics):
        average = statistics.shift_average_at(alpha)
        if average is not None and name == statistics.shifts[0]:
            yield percent_with_interval(average.value, average.interval)
        numbers = statistics.datasets[name].at(alpha)
        yield percent_with_interval(numbers.value, numbers.interval)


def _in_short(statistics: Statistics) -> Section:
    rows = [
        Row(name, (alpha_cell(alpha), *_values(statistics, alpha))) for name, alpha in named_alphas(statistics).items()
    ]
    if statistics.oracles:
        rows.append(_oracle_of_each(statistics))
    return Section(
        "In short",
        ("model", "alpha", *_columns(statistics)),
        tuple(rows),
        note=f"{INTERVALS} {selection_sentence(statistics)} What saw the shifts or a test set is a bound, no result.",
    )


def _oracle_of_each(statistics: Statistics) -> Row:
    """The paper's "optimal alpha": each column has its own."""

    def best(name: str) -> float:
        return statistics.datasets[name].at(statistics.oracles[name].alpha).value

    def cell(name: str) -> Cell:
        known = name in statistics.oracles
        return percent_cell(best(name), f"(alpha {statistics.oracles[name].alpha:g})") if known else percent_cell(None)

    shifts, averaged = statistics.shifts, statistics.averaged_shifts
    average = [best(name) for name in averaged if name in statistics.oracles]
    cells = [Cell("each"), *([] if statistics.reference is None else [cell(statistics.reference)])]
    if shifts:
        mean = sum(average) / len(average) if len(average) == len(averaged) else None
        cells += [percent_cell(mean), *map(cell, shifts)]
    return Row("ensemble, oracle per dataset (saw every test set)", tuple(cells))


def _every_alpha(statistics: Statistics) -> Section:
    names = shown_datasets(statistics)
    others = [name for name in names if statistics.datasets[name].metric != "top1"]
    metrics = "; ".join(f"{name} by {metric_name(statistics.datasets[name])}" for name in others)
    pm_k = [name for name in names if statistics.datasets[name].alphas[0].pm_k is not None]
    note = INTERVALS + (f" Top-1 accuracy, but {metrics}." if others else " Top-1 accuracy.")
    if statistics.shifts:
        note += " The shift average counts every shift alike"
        note += ", ImageNet-C's sets aside." if statistics.averaged_shifts != statistics.shifts else "."
    columns, rows = _columns(statistics), []
    for alpha in statistics.alphas:
        further = [percent_cell(statistics.datasets[name].at(alpha).pm_k) for name in pm_k]
        rows.append(Row(f"{alpha:g}", (*_values(statistics, alpha), *further), alpha))
    return Section("Every alpha", ("alpha", *columns, *(f"{name} (pm-k)" for name in pm_k)), tuple(rows), note=note)


def _groups(statistics: Statistics) -> Iterator[Section]:
    alphas = ends_and_chosen(statistics)
    for name in shown_datasets(statistics):
        dataset = statistics.datasets[name]
        if dataset.alphas[0].groups:
            group = dataset.group or "group"
            rows = [
                percent_row(label, *(dataset.at(alpha).groups.get(label) for alpha in alphas.values()))
                for label in dataset.alphas[0].groups
            ]
            note = f"Accuracy in percent on the samples of each {group}."
            yield Section(f"{dataset.title} by {group}", (group, *alphas), tuple(rows), note=note)


def _output_space(statistics: Statistics) -> Iterator[Section]:
    names = [name for name in shown_datasets(statistics) if statistics.datasets[name].output_space]
    if not names:
        return
    outputs = {name: {entry.alpha: entry.value for entry in statistics.datasets[name].output_space} for name in names}
    alphas = [alpha for alpha in statistics.alphas if all(alpha in values for values in outputs.values())]
    rows = [
        Row(
            f"{alpha:g}",
            tuple(points_cell(100 * (statistics.datasets[n].at(alpha).value - outputs[n][alpha])) for n in names),
            alpha,
        )
        for alpha in alphas
    ]
    yield Section(
        "Ensembles of weights against ensembles of outputs",
        ("alpha", *(column_name(statistics, name) for name in names)),
        tuple(rows),
        note="Percentage points by which mixing weights is better than mixing logits, which costs two forward passes.",
    )


def _corruption(statistics: Statistics) -> Iterator[Section]:
    if not statistics.corruption:
        return
    corruptions = list(dict.fromkeys(c for entry in statistics.corruption for c in entry.corruption_errors))
    rows = [
        Row(
            f"{entry.alpha:g}",
            tuple(map(percent_cell, (entry.mce, *map(entry.corruption_errors.get, corruptions)))),
            entry.alpha,
        )
        for entry in statistics.corruption
    ]
    yield Section(
        "ImageNet-C",
        ("alpha", "mCE", *corruptions),
        tuple(rows),
        note="Errors in percent of AlexNet's; lower is better. mCE is the mean over the 15 corruptions.",
    )
