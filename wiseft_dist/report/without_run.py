"""The results of an evaluation without a run: ``results.csv``, ``statistics.json``, and a table for people."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from wiseft_dist.commits import write_atomically
from wiseft_dist.evaluate.standalone.evaluation import RESULTS_FILE, STATISTICS_FILE, Evaluation, Scored
from wiseft_dist.evaluate.statistics.statistics import AlphaStatistics, Statistics
from wiseft_dist.printable import printable
from wiseft_dist.report.rows import COLUMNS, rows_of
from wiseft_dist.terminal import TABLE_WIDTH, shortened

MAX_TITLE = 36
"""Columns of a model's name in a table; of a longer one the end is shown, which tells files apart."""
MAX_DATASET = 40
"""Columns of a dataset's name; of a longer one the middle is left out."""


def write_results(evaluation: Evaluation) -> dict[str, Statistics]:
    """Compute the statistics of each model or ensemble and write them.

    ``statistics.json`` comes last and says which cells both files are of: without it, ``results.csv`` is of an earlier
    call or of none.

    Returns:
        Them, by the model's title.

    Raises:
        RunError: if a cell is missing or damaged.
    """
    found = {each.sources.title: each.statistics() for each in evaluation.scored}
    models = [_described(each) | {"statistics": found[each.sources.title].as_dict()} for each in evaluation.scored]
    told = {"cells": evaluation.cells_digest, "models": models}
    (evaluation.output / STATISTICS_FILE).unlink(missing_ok=True)
    write_atomically(evaluation.output / RESULTS_FILE, _csv(found))
    write_atomically(evaluation.output / STATISTICS_FILE, json.dumps(told, indent=1, allow_nan=False))
    return found


def tables(evaluation: Evaluation, found: Mapping[str, Statistics]) -> list[Table]:
    """Primary metrics in percent: a line for each model and alpha, a column for each dataset.

    None is wider than 100 columns: one with more datasets goes on in the next.
    """
    columns = [shortened(printable(name), MAX_DATASET) for name in _columns(next(iter(found.values())))]
    lines = [line for each in evaluation.scored for line in _lines(each, found[each.sources.title])]
    widths = [max(cell_len(name), *(len(line.values[index]) for line in lines)) for index, name in enumerate(columns)]
    return [_table(columns, lines, chosen) for chosen in _pieces(widths, TABLE_WIDTH - MAX_TITLE - 10)]


def _csv(found: Mapping[str, Statistics]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("model", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for title, statistics in found.items():
        writer.writerows({"model": title, **row} for row in rows_of(statistics))
    return text.getvalue()


def _described(scored: Scored) -> dict[str, Any]:
    sources = scored.sources
    method = {"method": sources.merge.method} if sources.finetuned else {}
    named = {"model": sources.title, "zero_shot": sources.zero_shot, "finetuned": list(sources.finetuned)}
    return named | method | {"heads": dict(scored.heads)}


def json_rows(title: str, statistics: Statistics) -> Iterator[dict[str, Any]]:
    """A row for each dataset and member."""
    for dataset in statistics.datasets.values():
        for space, entries in (("weight", dataset.alphas), ("output", dataset.output_space)):
            for entry in entries:
                place = {"model": title, "dataset": dataset.name, "role": dataset.role, "space": space}
                yield place | {"metric": dataset.metric, "num_samples": dataset.num_samples} | _numbers(entry)


def _numbers(entry: AlphaStatistics) -> dict[str, Any]:
    """What cannot be known, such as the worst of no groups, is null."""
    numbers = {
        "alpha": entry.alpha,
        "value": entry.value,
        "value_low": entry.interval.low,
        "value_high": entry.interval.high,
        "num_correct": entry.num_correct,
        "top1": entry.top1,
    }
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def _columns(statistics: Statistics) -> list[str]:
    names = [statistics.datasets[name].name for name in (str(statistics.reference), *statistics.shifts)]
    return [names[0], *(["shift avg"] if statistics.shifts else []), *names[1:]]


@dataclass(frozen=True)
class _Line:
    model: str
    alpha: str
    """Empty for a plain model."""
    values: list[str]
    """One a column."""


def _lines(scored: Scored, statistics: Statistics) -> Iterator[_Line]:
    short = shortened(printable(scored.sources.title), MAX_TITLE, at=0)
    for alpha in statistics.alphas:
        names = (str(statistics.reference), *statistics.shifts)
        reference, *shifts = (statistics.datasets[name].at(alpha).value for name in names)
        average = statistics.shift_average_at(alpha)
        values = [reference, *([] if average is None else [average.value]), *shifts]
        texts = ["-" if math.isnan(value) else f"{100 * value:.2f}" for value in values]
        yield _Line(short, f"{alpha:g}" if scored.sources.finetuned else "", texts)


def _pieces(widths: Sequence[int], room: int) -> list[list[int]]:
    """Consecutive columns that fit beside each other, at least one at a time."""
    pieces: list[list[int]] = [[]]
    used = 0
    for index, width in enumerate(widths):
        if pieces[-1] and used + width + 2 > room:
            pieces.append([])
            used = 0
        pieces[-1].append(index)
        used += width + 2
    return pieces


def _table(columns: Sequence[str], lines: Sequence[_Line], chosen: Sequence[int]) -> Table:
    """Some of the columns. A model's name is written once, beside the first of its alphas."""
    table = Table(box=None)
    table.add_column("model", overflow="fold")
    has_alphas = any(line.alpha for line in lines)
    for name in [*(["alpha"] if has_alphas else []), *(columns[index] for index in chosen)]:
        table.add_column(escape(name), justify="right", no_wrap=True)
    before = None
    for line in lines:
        model, alpha = "" if line.model == before else line.model, [line.alpha] if has_alphas else []
        table.add_row(escape(model), *alpha, *(line.values[index] for index in chosen))
        before = line.model
    return table
