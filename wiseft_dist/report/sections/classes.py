"""The page's sections on classes: which gain from fine-tuning and mixing, and which lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wiseft_dist.evaluate.statistics.statistics import ClassAccuracy, DatasetStatistics, Statistics
from wiseft_dist.report.page.section import Row, Section
from wiseft_dist.report.sections.numbers import count_cell, percent_cell, points_cell
from wiseft_dist.report.wording import class_name, shown_datasets

NUM_CLASSES = 5
"""Classes that are shown of those that gain most, and of those that lose most."""
MAX_ROWS = 4000
"""Classes in all lists of a page together, about: a row takes a quarter of a kilobyte, a page at most 5 MB."""
COLUMNS = ("class", "samples", "zero-shot (%)", "chosen (%)", "fine-tuned (%)", "change (pp)")


def class_sections(statistics: Statistics, classnames: Mapping[str, Sequence[str]]) -> Iterator[Section]:
    """For each dataset the classes that gain and lose most, and all of them where that is not too much.

    Args:
        statistics: Of the run.
        classnames: By dataset, where they are known; a class without a name is shown by its number.
    """
    names = shown_datasets(statistics)
    for name in names:
        dataset = statistics.datasets[name]
        ranked = _ranked(statistics, dataset)
        if not ranked:
            continue
        rows = tuple(_row(change, classnames.get(name, ())) for change in ranked)
        has_more = len(rows) > 2 * NUM_CLASSES
        is_listed = has_more and len(rows) <= MAX_ROWS // len(names)
        yield Section(
            f"{dataset.title}: classes that gain and lose most",
            COLUMNS,
            (*rows[:NUM_CLASSES], *rows[-NUM_CLASSES:]) if has_more else rows,
            note=_note(statistics) + ("" if is_listed or not has_more else " All classes are in statistics.json."),
            is_folded=True,
        )
        if is_listed:
            title = f"{dataset.title}: all {len(rows):,} classes"
            yield Section(title, COLUMNS, rows, note=_note(statistics), is_folded=True)


@dataclass(frozen=True)
class _Change:
    entry: ClassAccuracy
    points: float
    """From zero-shot, in percentage points."""


def _ranked(statistics: Statistics, dataset: DatasetStatistics) -> list[_Change]:
    """What gains most first; of equal changes the lower label."""
    compared = "finetuned" if statistics.chosen is None else "chosen"
    changes = [
        _Change(entry, 100 * (after - entry.zero_shot))
        for entry in dataset.classes
        if (after := getattr(entry, compared)) is not None and entry.zero_shot is not None
    ]
    return sorted(changes, key=lambda change: (-change.points, change.entry.label))


def _row(change: _Change, classnames: Sequence[str]) -> Row:
    entry = change.entry
    accuracies = map(percent_cell, (entry.zero_shot, entry.chosen, entry.finetuned))
    return Row(
        class_name(classnames, entry.label), (count_cell(entry.num_samples), *accuracies, points_cell(change.points))
    )


def _note(statistics: Statistics) -> str:
    to = "fine-tuned" if statistics.chosen is None else f"alpha {statistics.chosen:g}"
    return f"Accuracy on the samples of a class; the change is from zero-shot to {to}."
