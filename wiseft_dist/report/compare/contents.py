"""The page of a comparison: what stands on it, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import wiseft_dist
from wiseft_dist.evaluate.statistics.observations import SHIFT_AVERAGE
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.compare.cautions import cautions
from wiseft_dist.report.compare.differences import chosen, differences
from wiseft_dist.report.compare.figure import MAX_BARS, dataset_charts, look_of, runs_chart
from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.compare.settings import settings_section
from wiseft_dist.report.compare.shared import narrowed, shared_datasets
from wiseft_dist.report.compare.tables import accuracy_sections, difference_sections
from wiseft_dist.report.compare.training import cost_section, training_sections
from wiseft_dist.report.page.render import Page
from wiseft_dist.report.page.section import Cell, KeyNumbers, Section
from wiseft_dist.report.sections.numbers import percent_cell
from wiseft_dist.report.wording import column_name, shown_datasets
from wiseft_dist.tracking.scrubbing import scrubbed

MAX_TITLE_RUNS = 4
"""With more of them, their number stands in the title."""
MAX_KEY_NUMBERS = 6
"""Runs whose numbers stand beside the figure."""


def page_of_runs(given: Sequence[Compared], notes: Sequence[str] = ()) -> Page:
    """The page that compares runs.

    Args:
        given: The runs, at least two; the first is what the others are held against.
        notes: Further cautions: what was asked for and is not on the page.

    Raises:
        UserError: if they share no dataset.
    """
    shared = shared_datasets(given)
    runs = narrowed(given, shared)
    found = differences(runs)
    key_numbers = tuple(_key_numbers(runs)) if len(runs) <= MAX_KEY_NUMBERS else ()
    chart, note = runs_chart(runs), _how_to_read(runs)
    figure = Section("All runs", charts=(chart,), note=note, identity="runs", key_numbers=key_numbers)
    return Page(
        title=_title(runs),
        lead=(figure,),
        cautions=tuple(map(scrubbed, (*notes, *cautions(runs, shared, found)))),
        sections=(
            *accuracy_sections(runs),
            *difference_sections(runs, found),
            *_datasets(runs),
            settings_section(runs),
            *training_sections(runs),
            *cost_section(runs),
        ),
        footer=f"Compared with wiseft_dist {wiseft_dist.__version__}. This page needs nothing beside itself.",
    )


def _title(runs: Sequence[Compared]) -> str:
    names = [run.name for run in runs]
    if len(names) > MAX_TITLE_RUNS:
        return f"{len(names)} runs compared"
    return f"{', '.join(names[:-1])} and {names[-1]} compared"


def _key_numbers(runs: Sequence[Compared]) -> Iterator[KeyNumbers]:
    """At the chosen alpha of each run: the reference and the shift average."""
    for index, run in enumerate(runs):
        alpha, look = chosen(run.statistics), look_of(index)
        if alpha is not None:
            numbers = tuple(_numbers(run.statistics, alpha))
            yield KeyNumbers(run.name, numbers, f"alpha {alpha:g}", look.colour, look.shape)


def _numbers(statistics: Statistics, alpha: float) -> Iterator[tuple[str, Cell]]:
    average = statistics.shift_average_at(alpha)
    if statistics.reference is not None:
        yield (
            column_name(statistics, statistics.reference),
            percent_cell(statistics.datasets[statistics.reference].at(alpha).value),
        )
    if average is not None:
        yield SHIFT_AVERAGE, percent_cell(average.value)


def _how_to_read(runs: Sequence[Compared]) -> str:
    averaged = runs[0].statistics.averaged_shifts
    over = f" The shift average is over {', '.join(averaged)}." if averaged else ""
    bars = "Bars: 95 % intervals of the chosen alphas. " if len(runs) <= MAX_BARS else ""
    return (
        f"{bars}Runs whose zero-shot models say the same share their point. Runs "
        f"are compared on the datasets that all of them have.{over}"
    )


def _datasets(runs: Sequence[Compared]) -> tuple[Section, ...]:
    if len(shown_datasets(runs[0].statistics)) < 2:
        return ()
    return (Section("Every dataset", charts=dataset_charts(runs)),)
