"""The report stage: results.csv, statistics.json, selection.json, the curve and the page, from cells alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL, datasets_to_evaluate
from wiseft_dist.evaluate.cells.store import CellStore, report_digest
from wiseft_dist.evaluate.run_datasets import dataset_of_run
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.models.files import CLASSES_FILE
from wiseft_dist.publish import publish_report
from wiseft_dist.report.figures import draw_curve
from wiseft_dist.report.page.render import page
from wiseft_dist.report.results import gather
from wiseft_dist.report.rows import to_csv
from wiseft_dist.report.table import named_alphas
from wiseft_dist.run import Run, write_atomically
from wiseft_dist.tracking import Tracker, tracking

CURVE_FILE = "curve.png"


def report(config: RunConfig, run: Run) -> Statistics:
    """Write the report of a run whose cells are all there, and publish it where the run says so.

    Raises:
        RunError: naming what is missing, or if the store fails for good.
    """
    statistics = gather(config, run)
    run.report.mkdir(parents=True, exist_ok=True)
    with tracking(config, run, "report") as tracker:
        tracker.event("started")
        run.selection_file.unlink(missing_ok=True)
        curve = run.report / CURVE_FILE
        draw_curve(statistics, curve, curve.with_suffix(".svg"))
        classnames, counts = _classnames(config, run), _published_counts(config, run)
        text = page(run.path.name, statistics, curve, classnames=classnames, published_counts=counts)
        write_atomically(run.report / "index.html", text)
        write_atomically(run.results_file, to_csv(statistics))
        write_atomically(run.statistics_file, json.dumps(statistics.as_dict(), indent=1, allow_nan=False))
        # Gone first and back last: it names the cells that the other files were made of, so says that they are current.
        write_atomically(run.selection_file, json.dumps(_selection(config, run, statistics), indent=1))
        _track(tracker, statistics)
        tracker.image("curve", curve)
        tracker.summary(_summary(statistics))
        publish_report(config, run)
        tracker.event("finished")
    return statistics


def _classnames(config: RunConfig, run: Run) -> dict[str, Sequence[str]]:
    """What the labels of each dataset mean: its own classes, or else the head's."""
    head = json.loads((run.zero_shot / CLASSES_FILE).read_text())["classnames"]
    return {name: dataset_of_run(config, run, name).classnames or head for name in config.data.evaluated} | {
        ID_VAL: head
    }


def _published_counts(config: RunConfig, run: Run) -> Mapping[str, int]:
    counts = {name: dataset_of_run(config, run, name).spec.num_samples for name in config.data.evaluated}
    return {name: count for name, count in counts.items() if count is not None}


def _selection(config: RunConfig, run: Run, statistics: Statistics) -> dict[str, Any]:
    """The chosen alphas, and the ID-val accuracies behind the choice."""
    store, names = CellStore.of_run(config, run), datasets_to_evaluate(config, run)
    held_out = statistics.datasets.get(ID_VAL)
    return {
        "cells": report_digest(config, store, names),
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


def _track(tracker: Tracker, statistics: Statistics) -> None:
    """The datasets' own metrics over alpha, fractions: readers know only their parts of a dataset."""
    for name, dataset in statistics.datasets.items():
        for numbers in dataset.alphas:
            tracker.metrics({f"{name}/{dataset.metric}": numbers.value}, alpha=numbers.alpha)


def _summary(statistics: Statistics) -> dict[str, float]:
    """For tracking: the datasets' own metrics, fractions."""
    values = {}
    for name, alpha in named_alphas(statistics).items():
        values[f"{name}/alpha"] = alpha
        if statistics.reference is not None:
            reference = statistics.datasets[statistics.reference]
            values[f"{name}/{reference.role}"] = reference.at(alpha).value
        if average := statistics.shift_average_at(alpha):
            values[f"{name}/shift_average"] = average.value
    return values
