"""The report stage: results.csv, selection.json, the curve and the page, from cells alone."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

import wiseft_dist
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL
from wiseft_dist.publish import publish_report
from wiseft_dist.report.figures import draw_curve
from wiseft_dist.report.results import Results, gather
from wiseft_dist.report.table import named_alphas
from wiseft_dist.run import Run, write_atomically
from wiseft_dist.tracking import tracking

CURVE_FILE = "curve.png"


def report(config: RunConfig, run: Run) -> Results:
    """Write the report of a run whose cells are all there, and publish it where the run says so.

    Raises:
        RunError: naming what is missing, or if the store fails for good.
    """
    results = gather(config, run)
    run.report.mkdir(parents=True, exist_ok=True)
    with tracking(config, run, "report") as tracker:
        tracker.event("started")
        curve = run.report / CURVE_FILE
        draw_curve(results, curve, curve.with_suffix(".svg"))
        write_atomically(run.report / "index.html", _page(run.path.name, results, curve))
        write_atomically(run.results_file, results.to_csv())
        # Last: it names the cells that the files above were made of, and so says that they are current.
        write_atomically(run.selection_file, json.dumps(_selection(results), indent=1))
        tracker.image("curve", curve)
        tracker.summary(_summary(results))
        publish_report(config, run)
        tracker.event("finished")
    return results


def _selection(results: Results) -> dict[str, Any]:
    """The chosen alphas, and the ID-val accuracies behind the choice."""
    return {
        "cells": results.cells_digest,
        "choices": [asdict(choice) for choice in results.choices],
        "id_val": [
            {
                "alpha": alpha,
                "num_samples": cell.num_samples,
                "num_correct": cell.num_correct,
                "top1": cell.top1,
            }
            for alpha in results.alphas
            if (cell := results.cells.get((ID_VAL, alpha))) is not None
        ],
    }


def _summary(results: Results) -> dict[str, float]:
    values = {}
    for name, alpha in named_alphas(results).items():
        values[f"{name}/alpha"] = alpha
        values[f"{name}/{results.role_of_reference}"] = results.top1(results.reference)[alpha]
        if results.shifts:
            values[f"{name}/shift_average"] = results.shift_average[alpha]
    return values


def _page(name: str, results: Results, curve: Path) -> str:
    """The page as one file; jinja2 escapes every text that comes from data."""
    columns = [results.reference, *(["shift average", *results.shifts] if results.shifts else [])]

    def values(alpha: float) -> list[str]:
        shifts = (
            [results.shift_average[alpha], *(results.top1(s)[alpha] for s in results.shifts)] if results.shifts else []
        )
        return [f"{100 * value:.2f}" for value in (results.top1(results.reference)[alpha], *shifts)]

    template = jinja2.Environment(loader=jinja2.PackageLoader("wiseft_dist", "report"), autoescape=True)
    return template.get_template("page.html.j2").render(
        name=name,
        against="against the average over the shifts, one point" if results.shifts else "over alpha, one point",
        reference=results.reference,
        columns=columns,
        curve=base64.b64encode(curve.read_bytes()).decode(),
        summary=[{"name": n, "alpha": f"{a:g}", "accuracies": values(a)} for n, a in named_alphas(results).items()],
        grid=[{"alpha": f"{alpha:g}", "accuracies": values(alpha)} for alpha in results.alphas],
        counts=[(d, results.cells[d, results.alphas[0]].num_samples) for d in (results.reference, *results.shifts)],
        selection=_selection_sentence(results),
        version=wiseft_dist.__version__,
    )


def _selection_sentence(results: Results) -> str:
    choice = results.choice("id_val")
    if choice is None:
        return "No alpha was chosen by validation: nothing was held out of the training set."
    count = results.cells[ID_VAL, choice.alpha].num_samples
    chosen = f"Alpha {choice.alpha:g} was chosen on {count} samples held out of the training set; "
    if results.reference == ID_VAL:
        return chosen + "there is no test set, so the accuracies are on the same samples."
    return chosen + "the shifts were not looked at."
