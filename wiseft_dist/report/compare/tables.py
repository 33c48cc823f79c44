"""The tables of a comparison: what each run reaches, and by how much it differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.observations import SHIFT_AVERAGE
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.compare.differences import MODELS, Difference, chosen, finetuned
from wiseft_dist.report.compare.figure import zero_shot_groups
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.compare.standings import Number, standings
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.sections.numbers import (
    alpha_cell,
    count_cell,
    p_cell,
    percent_cell,
    points_with_interval,
)
from wiseft_dist.report.wording import NOTHING, column_name, percent_range, shown_datasets

HOW_MARKED = (
    "In percent, with 95 % intervals. Best: the intervals of all others lie below it. Within noise: the interval "
    "reaches up to that of the highest number. The differences below tell more where they are paired."
)
PAIRED = (
    "Percentage points by which a run is above {first}. Paired: on the very same samples, with the 95 % interval of a "
    "paired bootstrap; McNemar's test is on samples that only one of the two has right, Holm's correction for all "
    "comparisons on the dataset. Unpaired: the interval follows from those of both numbers, as if they were of "
    "different samples, which makes it too wide where they are not."
)


def accuracy_sections(runs: Sequence[Compared]) -> Iterator[Section]:
    """A table each for the chosen alpha, the fine-tuned and the zero-shot models, as far as they were evaluated."""
    yield from _accuracies("At the chosen alpha", [[run] for run in runs], chosen, with_id_val=True)
    yield from _accuracies("Fine-tuned", [[run] for run in runs], finetuned)
    groups = zero_shot_groups(runs)
    note = " Runs whose zero-shot models say the same share a line." if any(len(each) > 1 for each in groups) else ""
    yield from _accuracies("Zero-shot", groups, lambda _: 0.0, note=note, num_runs=len(runs))


def difference_sections(runs: Sequence[Compared], found: Sequence[Difference]) -> Iterator[Section]:
    """One for each kind of model that there is something to say of."""
    first = runs[0].name
    titles = dict(zip(MODELS, ("the chosen alphas", "fine-tuned"), strict=True))
    for model, title in titles.items():
        rows = tuple(_difference(runs[0].statistics, each) for each in _in_order(found, runs, model))
        if rows:
            yield Section(
                f"Differences from {first}, {title}",
                (
                    *("run, dataset", "difference (pp)", "verdict", "only it is right", "only the first is right"),
                    *("McNemar p", "Holm p", "pairing"),
                ),
                rows,
                note=PAIRED.format(first=first),
                is_folded=model != "chosen",
                identity=f"differences {model}",
            )


def _in_order(found: Sequence[Difference], runs: Sequence[Compared], model: str) -> list[Difference]:
    """Run after run, the average over the shifts before the datasets."""
    places = {run.name: index for index, run in enumerate(runs)}
    chosen_ones = [each for each in found if each.model == model]
    return sorted(chosen_ones, key=lambda each: (places[each.run], each.dataset != SHIFT_AVERAGE))


def _difference(first: Statistics, found: Difference) -> Row:
    title = SHIFT_AVERAGE if found.dataset == SHIFT_AVERAGE else first.datasets[found.dataset].title
    test, adjusted = found.test, found.adjusted_p_value
    tested = [Cell(NOTHING)] * 4
    if test is not None and adjusted is not None:
        tested = [count_cell(test.num_only_first), count_cell(test.num_only_second)]
        tested += [p_cell(test.p_value), p_cell(adjusted)]
    cells = (points_with_interval(found.value, found.interval), Cell(found.verdict), *tested)
    return Row(f"{found.run}, {title}", (*cells, Cell("unpaired" if found.reason else "paired")))


def _accuracies(
    title: str,
    groups: Sequence[Sequence[Compared]],
    alpha_of: Callable[[Statistics], float | None],
    *,
    with_id_val: bool = False,
    note: str = "",
    num_runs: int = 0,
) -> Iterator[Section]:
    """A line for each group of runs, of which one stands for all; one of ``num_runs`` is of all of them."""
    wanted = [(group, alpha) for group in groups if (alpha := alpha_of(group[0].statistics)) is not None]
    if not wanted:
        return
    first = wanted[0][0][0].statistics
    numbers = [list(_numbers(group[0].statistics, alpha)) for group, alpha in wanted]
    words = [standings(column) for column in zip(*numbers, strict=True)]
    rows = []
    for index, (group, alpha) in enumerate(wanted):
        id_val = [_id_val(group[0].statistics, alpha)] if with_id_val else []
        cells = [_cell(*number, words[column][index]) for column, number in enumerate(numbers[index])]
        name = "all runs" if len(group) == num_runs else ", ".join(run.name for run in group)
        rows.append(Row(name, (alpha_cell(alpha), *id_val, *cells)))
    own = ("alpha", *(["ID-val"] if with_id_val else []))
    yield Section(title, ("run", *own, *_columns(first)), tuple(rows), note=HOW_MARKED + note)


def _columns(statistics: Statistics) -> Iterator[str]:
    for name in shown_datasets(statistics):
        if statistics.shifts and name == statistics.shifts[0]:
            yield SHIFT_AVERAGE
        yield column_name(statistics, name)


def _numbers(statistics: Statistics, alpha: float) -> Iterator[Number]:
    """One a column."""
    for name in shown_datasets(statistics):
        average = statistics.shift_average_at(alpha)
        if average is not None and name == statistics.shifts[0]:
            yield average.value, average.interval
        numbers = statistics.datasets[name].at(alpha)
        yield numbers.value, numbers.interval


def _cell(value: float, interval: Interval, word: str) -> Cell:
    return percent_cell(value, ", ".join(filter(None, (percent_range(interval), word))))


def _id_val(statistics: Statistics, alpha: float) -> Cell:
    """On the held-out piece, which chose alpha: no result."""
    held_out = next((each for each in statistics.datasets.values() if each.role == "id_val"), None)
    return Cell(NOTHING) if held_out is None else percent_cell(held_out.at(alpha).value)
