"""The page's sections on accuracy: the models worth naming, the paper's observations, every alpha, groups."""

from __future__ import annotations

from collections.abc import Iterator

from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.page.section import Cell, Row, Section, ends_and_chosen, row, with_interval
from wiseft_dist.report.table import choice, named_alphas
from wiseft_dist.report.wording import NOTHING, column_name, metric_name, percent, points, shown_datasets

INTERVALS = (
    "In percent, with 95 % intervals: Clopper-Pearson for proportions of independent samples, bootstrap for the rest."
)


def accuracy_sections(statistics: Statistics) -> Iterator[Section]:
    """Those that have something to show, in the order of the page."""
    yield _in_short(statistics)
    if statistics.observations:
        yield Section(
            "The paper's observations",
            sentences=tuple(observation.sentence for observation in statistics.observations),
            note="Source: arXiv 2109.01903, section 4. Within noise: the paired bootstrap allows the opposite too.",
        )
    yield _every_alpha(statistics)
    yield from _groups(statistics)
    yield from _output_space(statistics)
    yield from _corruption(statistics)


def selection_sentence(statistics: Statistics) -> str:
    """How alpha was chosen."""
    chosen = choice(statistics, "id_val")
    held_out = next((each for each in statistics.datasets.values() if each.role == "id_val"), None)
    if chosen is None or held_out is None:
        return "No alpha was chosen by validation: nothing was held out of the training set."
    text = f"Alpha {chosen.alpha:g} was chosen on {held_out.num_samples} samples held out of the training set; "
    if statistics.reference == held_out.name:
        return text + "there is no test set, so the accuracies are on the same samples."
    return text + "the shifts were not looked at."


def _columns(statistics: Statistics) -> tuple[str, ...]:
    reference = [] if statistics.reference is None else [column_name(statistics, statistics.reference)]
    shifts = [column_name(statistics, name) for name in statistics.shifts]
    return (*reference, *(["shift average"] if shifts else []), *shifts)


def _values(statistics: Statistics, alpha: float) -> Iterator[Cell]:
    for name in shown_datasets(statistics):
        average = statistics.shift_average_at(alpha)
        if average is not None and name == statistics.shifts[0]:
            yield with_interval(average.value, average.interval)
        numbers = statistics.datasets[name].at(alpha)
        yield with_interval(numbers.value, numbers.interval)


def _in_short(statistics: Statistics) -> Section:
    rows = [
        Row(name, (Cell(f"{alpha:g}"), *_values(statistics, alpha))) for name, alpha in named_alphas(statistics).items()
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
        return Cell(percent(best(name)), f"(alpha {statistics.oracles[name].alpha:g})") if known else Cell(NOTHING)

    shifts, averaged = statistics.shifts, statistics.averaged_shifts
    average = [best(name) for name in averaged if name in statistics.oracles]
    cells = [Cell("each"), *([] if statistics.reference is None else [cell(statistics.reference)])]
    if shifts:
        mean = Cell(percent(sum(average) / len(average))) if len(average) == len(averaged) else Cell(NOTHING)
        cells += [mean, *map(cell, shifts)]
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
        further = [Cell(percent(statistics.datasets[name].at(alpha).pm_k)) for name in pm_k]
        rows.append(Row(f"{alpha:g}", (*_values(statistics, alpha), *further)))
    return Section("Every alpha", ("alpha", *columns, *(f"{name} (pm-k)" for name in pm_k)), tuple(rows), note=note)


def _groups(statistics: Statistics) -> Iterator[Section]:
    alphas = ends_and_chosen(statistics)
    for name in shown_datasets(statistics):
        dataset = statistics.datasets[name]
        if dataset.alphas[0].groups:
            group = dataset.group or "group"
            rows = [
                row(label, *(percent(dataset.at(alpha).groups.get(label)) for alpha in alphas.values()))
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
        row(f"{alpha:g}", *(points(100 * (statistics.datasets[n].at(alpha).value - outputs[n][alpha])) for n in names))
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
        row(f"{entry.alpha:g}", percent(entry.mce), *(percent(entry.corruption_errors.get(c)) for c in corruptions))
        for entry in statistics.corruption
    ]
    yield Section(
        "ImageNet-C",
        ("alpha", "mCE", *corruptions),
        tuple(rows),
        note="Errors in percent of AlexNet's; lower is better. mCE is the mean over the 15 corruptions.",
    )
