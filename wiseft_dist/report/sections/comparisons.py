"""The page's sections that compare models: paired tests, calibration, robustness, diversity, classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from wiseft_dist.evaluate.statistics.paired import ENDPOINTS, Endpoint
from wiseft_dist.evaluate.statistics.robustness import RobustnessPoint
from wiseft_dist.evaluate.statistics.statistics import ClassAccuracy, DatasetStatistics, Statistics
from wiseft_dist.report.page.section import Cell, Row, Section, ends_and_chosen, row
from wiseft_dist.report.wording import (
    NOTHING,
    number,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
    shown_datasets,
)

WITHOUT_CKA = (
    " 1 - CKA is missing where the image features of both ends were not scored together, hardly vary, or are of parts "
    "that overlap because evaluate.part_samples changed."
)
NUM_CLASSES = 5
"""Classes that are shown of those that gain most, and of those that lose most."""
ENDS: dict[Endpoint, str] = {"zero_shot": "zero-shot", "finetuned": "fine-tuned"}


def comparison_sections(statistics: Statistics, classnames: Mapping[str, Sequence[str]]) -> Iterator[Section]:
    """Those that have something to show, in the order of the page.

    Args:
        statistics: Of the run.
        classnames: By dataset, where they are known; a class without a name is shown by its number.
    """
    datasets = [statistics.datasets[name] for name in shown_datasets(statistics)]
    yield from _paired(statistics, datasets)
    yield _calibration(statistics, datasets)
    yield from _robustness(statistics)
    yield from _diversity(statistics, datasets)
    for dataset in datasets:
        yield from _classes(statistics, dataset, classnames.get(dataset.name, ()))


def _paired(statistics: Statistics, datasets: Sequence[DatasetStatistics]) -> Iterator[Section]:
    if statistics.chosen is None:
        return
    # The ends are compared once, as fine-tuned against zero-shot: where zero-shot is chosen too.
    alpha = ENDPOINTS["finetuned"] if statistics.chosen == ENDPOINTS["zero_shot"] else statistics.chosen
    rows = []
    for dataset in datasets:
        for against, end in ENDS.items():
            found = dataset.compared(alpha, against)
            if found is not None:
                test = found.mcnemar
                rows.append(
                    Row(
                        f"{dataset.title}, against {end}",
                        (
                            Cell(points(found.difference), f"({points_range(found.interval)})"),
                            Cell(f"{test.num_only_first:,}"),
                            Cell(f"{test.num_only_second:,}"),
                            Cell(p_value(test.p_value)),
                            Cell(p_value(found.adjusted_p_value)),
                        ),
                    )
                )
    if rows:
        yield Section(
            f"Alpha {alpha:g} against the ends" if alpha == statistics.chosen else "Fine-tuned against zero-shot",
            ("dataset", "difference (pp)", "only it is right", "only the end is right", "McNemar p", "Holm p"),
            tuple(rows),
            note="On the same samples. The difference is of the dataset's own metric, with the 95 % interval of a "
            "paired bootstrap; McNemar's test is on samples that only one of the two has right; Holm's correction is "
            "for all comparisons on the dataset.",
        )


def _calibration(statistics: Statistics, datasets: Sequence[DatasetStatistics]) -> Section:
    rows = [
        row(f"{dataset.title}, {name}", percent(numbers.ece), number(numbers.nll), number(numbers.brier))
        for dataset in datasets
        for name, alpha in ends_and_chosen(statistics).items()
        for numbers in (dataset.at(alpha),)
    ]
    return Section(
        "Calibration",
        ("model", "ECE (%)", "NLL (nats)", "Brier (0 to 2)"),
        tuple(rows),
        note="Lower is better. ECE has 15 bins of equal width and counts them all.",
    )


def _robustness(statistics: Statistics) -> Iterator[Section]:
    without = [name for name in statistics.shifts if name not in statistics.robustness]
    missing = f"There is no line of standard models for {', '.join(without)}." if without else ""
    if not statistics.robustness:
        if without:
            yield Section("Effective robustness", sentences=(missing,))
        return
    rows = [
        Row(f"{statistics.datasets[name].title}, {label}", tuple(_point(robustness.at(alpha))))
        for name, robustness in statistics.robustness.items()
        for label, alpha in ends_and_chosen(statistics).items()
    ]
    sources = "; ".join(dict.fromkeys(robustness.fit.source for robustness in statistics.robustness.values()))
    yield Section(
        "Effective robustness",
        ("model", "reference (%)", "predicted (%)", "measured (%)", "effective robustness (pp)", ""),
        tuple(rows),
        sentences=tuple(filter(None, (missing, _unknown_end(statistics)))),
        note="By how much a shift's value is above that of standard models with the same reference accuracy. The "
        "reference is restricted to the shift's classes, so it differs from line to line; at least: if every sample "
        "with none of these classes among the five likeliest were right. "
        f"Fitted on: {sources}.",
    )


def _unknown_end(statistics: Statistics) -> str:
    """What "perhaps extrapolated" means; empty where nothing is."""
    found = statistics.robustness.items()
    names = [name for name, robustness in found if any(point.extrapolated is None for point in robustness.points)]
    if not names:
        return ""
    return (
        f"{', '.join(names)}: the upper end of the fitted range is not known, so effective robustness may be "
        "extrapolated."
    )


def _point(point: RobustnessPoint) -> Iterator[Cell]:
    yield Cell(percent(point.reference), f"({percent_range(point.reference_interval)})")
    yield Cell(percent(point.predicted))
    yield Cell(percent(point.shift), f"({percent_range(point.shift_interval)})")
    at_least = f"(at least {points(point.lowest)})" if point.undetermined else ""
    yield Cell(points(point.effective_robustness), at_least)
    yield Cell("perhaps extrapolated" if point.extrapolated is None else "extrapolated" if point.extrapolated else "")


def _diversity(statistics: Statistics, datasets: Sequence[DatasetStatistics]) -> Iterator[Section]:
    rows = []
    for dataset in datasets:
        found = dataset.diversity
        if found is None:
            continue
        override = next((each for each in found.overrides if each.alpha == statistics.chosen), None)
        rows.append(
            row(
                dataset.title,
                percent(found.prediction_diversity),
                percent(found.only_zero_shot_right),
                percent(found.only_finetuned_right),
                percent(found.disagreement),
                number(found.kappa_complement),
                number(found.mean_kl),
                number(found.cka_complement),
                NOTHING if override is None else percent(override.follows_zero_shot),
                NOTHING if override is None else percent(override.follows_finetuned),
            )
        )
    is_without_cka = any(each.diversity and each.diversity.cka_complement is None for each in datasets)
    if rows:
        yield Section(
            "How zero-shot and fine-tuned differ",
            (
                *("dataset", "one is right (%)", "only zero-shot (%)", "only fine-tuned (%)", "disagree (%)"),
                *("1 - kappa", "KL (nats)", "1 - CKA", "follows zero-shot (%)", "follows fine-tuned (%)"),
            ),
            tuple(rows),
            note="The last two columns say with whom the chosen alpha agrees where the two disagree."
            + (WITHOUT_CKA if is_without_cka else ""),
        )


def _classes(statistics: Statistics, dataset: DatasetStatistics, classnames: Sequence[str]) -> Iterator[Section]:
    compared, title = ("chosen", f"alpha {statistics.chosen:g}") if statistics.chosen is not None else ("finetuned", "")
    changes = [
        (100 * (after - entry.zero_shot), entry)
        for entry in dataset.classes
        if (after := getattr(entry, compared)) is not None and entry.zero_shot is not None
    ]
    if not changes:
        return
    ranked = sorted(changes, key=lambda change: (-change[0], change[1].label))
    chosen = ranked if len(ranked) <= 2 * NUM_CLASSES else [*ranked[:NUM_CLASSES], *ranked[-NUM_CLASSES:]]
    yield Section(
        f"{dataset.title}: classes that gain and lose most",
        ("class", "samples", "zero-shot (%)", "chosen (%)", "fine-tuned (%)", "change (pp)"),
        tuple(_class(entry, classnames, change) for change, entry in chosen),
        note=f"Accuracy on the samples of a class; the change is from zero-shot to {title or 'fine-tuned'}.",
        is_folded=True,
    )


def _class(entry: ClassAccuracy, classnames: Sequence[str], change: float) -> Row:
    name = classnames[entry.label] if entry.label < len(classnames) else f"class {entry.label}"
    accuracies = (percent(entry.zero_shot), percent(entry.chosen), percent(entry.finetuned))
    return row(name, f"{entry.num_samples:,}", *accuracies, points(change))
