"""The report stage: results.csv, statistics.json, selection.json, the curve and the page, from cells alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from wiseft_dist.commits import write_atomically
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL, datasets_to_evaluate
from wiseft_dist.evaluate.cells.store import CellStore, report_digest
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.publish import publish_report
from wiseft_dist.report.contents import page_of_run
from wiseft_dist.report.figures import draw_figures
from wiseft_dist.report.model_card import write_cards
from wiseft_dist.report.page.render import render
from wiseft_dist.report.results import gather
from wiseft_dist.report.rows import to_csv
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker, tracking
from wiseft_dist.tracking.shown_report import curve_rows, job_of_cells, summary_values


def report(config: RunConfig, run: Run) -> Statistics:
    """Write the report of a run whose cells are all there, and publish it where the run says so.

    Raises:
        RunError: naming what is missing, or if the store fails for good.
    """
    statistics = gather(config, run)
    run.report.mkdir(parents=True, exist_ok=True)
    with tracking(config, run, "report", job=job_of_cells(_digest(config, run))) as tracker:
        tracker.event("started")
        run.selection_file.unlink(missing_ok=True)
        draw_figures(statistics, run.report)
        write_cards(config, run, statistics)
        write_atomically(run.report / "index.html", render(page_of_run(config, run, statistics)))
        write_atomically(run.results_file, to_csv(statistics))
        write_atomically(run.statistics_file, json.dumps(statistics.as_dict(), indent=1, allow_nan=False))
        # Gone first and back last: it names the cells that the other files were made of, so says that they are current.
        write_atomically(run.selection_file, json.dumps(_selection(config, run, statistics), indent=1))
        _track(tracker, statistics)
        publish_report(config, run)
        tracker.event("finished")
    return statistics


def _selection(config: RunConfig, run: Run, statistics: Statistics) -> dict[str, Any]:
    """The chosen alphas, and the ID-val accuracies behind the choice."""
    held_out = statistics.datasets.get(ID_VAL)
    return {
        "cells": _digest(config, run),
        "choices": [asdict(choice) for choice in statistics.choices],
        "chosen": statistics.chosen,
        "oracles": {name: choice.alpha for name, choice in statistics.oracles.items()},
        "id_val": [
            {
                "alpha": numbers.alpha,
                "num_samples": held_out.num_samples,
                "num_correct": numbers.num_correct,
                "top1": numbers.top1,
                "metric": held_out.metric,
                "value": numbers.value,
            }
            for numbers in held_out.alphas
        ]
        if held_out is not None
        else [],
    }


def _digest(config: RunConfig, run: Run) -> str:
    """Of the cells: what is written from others is another report, and another W&B run."""
    return report_digest(config, CellStore.of_run(config, run), datasets_to_evaluate(config, run))


def _track(tracker: Tracker, statistics: Statistics) -> None:
    """The curve, a line for each alpha, and what came out; fractions. Readers know only their parts of a dataset."""
    content = statistics.as_dict()
    for row in curve_rows(content):
        tracker.metrics({name.removeprefix("report/"): value for name, value in row.items()})
    tracker.summary(summary_values(content))
