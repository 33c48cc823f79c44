"""What W&B shows of a written report, from files of the run directory alone: the same live and replayed.

The curve's names are the same in every run (``report/reference``, ``report/shift_average`` over ``alpha``), so curves
of runs on other datasets can be laid over each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wiseft_dist.commits import COMMIT_FILE, digest, read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.run import Run
from wiseft_dist.storage.urls import join, without_secrets
from wiseft_dist.tracking.private_folder import disguised
from wiseft_dist.tracking.scrubbing import scrubbed

DIGITS_OF_JOB = 8
TABLE_COLUMNS = ("dataset", "role", "metric", "alpha", "value", "low", "high", "n", "skipped", "top1", "ece", "nll")
FIXED = "fixed"


def show(wandb_run: Any, run: Run, config: RunConfig, *, job: str = "", after: int = -1) -> None:
    """Show the report that lies in a run directory: curve, table of cells, picture, summary, final model.

    Args:
        wandb_run: What :func:`wandb.init` returned.
        run: The run.
        config: Its configuration.
        job: Which report the W&B run is of, as :func:`job_of_report` says; empty: whatever is there. Of a report that
            was written over since, nothing is shown.
        after: Rows up to this step are held by the W&B run already and not told again.
    """
    statistics = _report_of(run, job)
    if statistics is None:
        return
    rows, first = curve_rows(statistics), max(after + 1, wandb_run.step)
    for step, row in enumerate(rows):
        if step >= first:
            wandb_run.log(row, step=step, commit=True)
    if len(rows) >= first:
        wandb_run.log(_pictures(run, statistics), step=len(rows), commit=True)
    wandb_run.summary.update(summary_values(statistics))
    if config.wandb.upload_model and statistics["chosen"] is not None and not wandb_run.offline:  # `wiseft sync` does
        _show_model(wandb_run, run, statistics)


def num_rows_of_report(run: Run, job: str) -> int:
    """How many rows :func:`show` makes of a report: one for each alpha, and one for table and picture."""
    statistics = _report_of(run, job)
    return 0 if statistics is None else len(statistics["alphas"]) + 1


def _report_of(run: Run, job: str) -> dict[str, Any] | None:
    """The numbers of the report that lies there, if it is the job's and not being written now."""
    cells = job_of_report(run)
    return _read(run.statistics_file) if cells is not None and job in ("", cells) else None


def job_of_cells(cells: str) -> str:
    """What tells the W&B run of a report from those of reports of cells with another digest than ``cells``."""
    return cells[:DIGITS_OF_JOB]


def job_of_report(run: Run) -> str | None:
    """The same of the report that lies in a run directory; None where none is written."""
    selection = _read(run.selection_file)
    return None if selection is None else job_of_cells(str(selection["cells"]))


def curve_rows(statistics: dict[str, Any]) -> list[dict[str, float]]:
    """The curve: a row for each alpha, rising, of fractions. What is not known is left out."""
    averages = {entry["alpha"]: entry["value"] for entry in statistics["shift_average"]}
    rows = []
    for alpha in statistics["alphas"]:
        row: dict[str, Any] = {"report/shift_average": averages.get(alpha)}
        for name, dataset in statistics["datasets"].items():
            value = _value_at(dataset, alpha)
            row[f"report/{scrubbed(name)}/{dataset['metric']}"] = value
            if name == statistics["reference"]:
                row["report/reference"] = value
        known = {key: value for key, value in row.items() if value is not None}
        rows.append({"alpha": alpha} | dict(sorted(known.items())))
    return rows


def summary_values(statistics: dict[str, Any]) -> dict[str, float]:
    """The chosen alpha; reference and shift average of zero-shot, fine-tuned, fixed and chosen, fractions."""
    fixed = next((choice["alpha"] for choice in statistics["choices"] if choice["name"] == FIXED), None)
    named = {"zero_shot": 0.0, "finetuned": 1.0, FIXED: fixed, "chosen": statistics["chosen"]}
    values = {} if statistics["chosen"] is None else {"chosen_alpha": statistics["chosen"]}
    rows = {row["alpha"]: row for row in curve_rows(statistics)}
    for name, alpha in named.items():
        for kind in ("reference", "shift_average"):
            value = rows.get(alpha, {}).get(f"report/{kind}")
            if value is not None:
                values[f"{name}/{kind}"] = value
    return values


def cells(statistics: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The rows of the table: one for each alpha on each dataset."""
    for name, dataset in statistics["datasets"].items():
        for each in dataset["alphas"]:
            interval = each["interval"]
            yield (
                *(scrubbed(name), dataset["role"], dataset["metric"], each["alpha"], each["value"]),
                *(interval["low"], interval["high"], dataset["num_samples"], dataset["num_skipped"]),
                *(each["top1"], each["ece"], each["nll"]),
            )


def _pictures(run: Run, statistics: dict[str, Any]) -> dict[str, Any]:
    """The table of cells and the picture of the curve, for the row after the last alpha."""
    import wandb

    shown = {"report/cells": wandb.Table(columns=list(TABLE_COLUMNS), data=[list(row) for row in cells(statistics)])}
    curve = run.report / "curve.png"
    return shown | ({"report/curve": wandb.Image(str(curve))} if curve.is_file() else {})


def _show_model(wandb_run: Any, run: Run, statistics: dict[str, Any]) -> None:
    """The ensemble of the chosen alpha as an artifact; by reference where it was published."""
    import wandb

    alpha = statistics["chosen"]
    folder = run.ensemble(alpha)
    if not (folder / COMMIT_FILE).is_file():
        return
    chosen = {key: value for key, value in summary_values(statistics).items() if key.startswith("chosen")}
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{wandb_run.group}-model")
    artifact = wandb.Artifact(name, type="model", metadata={"alpha": alpha} | chosen)
    url = _published(run, folder)
    if url is None:
        artifact.add_dir(str(disguised(folder)), policy="immutable", skip_cache=True)  # no copies of gigabytes at home
    else:
        _refer(artifact, folder, url)
    wandb_run.log_artifact(artifact, aliases=["chosen"])


def _refer(artifact: Any, folder: Path, url: str) -> None:
    """Name each published file with its size; W&B's own way asks the store, by libraries that need not be there."""
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    for name, entry in read_commit(folder)["files"].items():
        shown = ArtifactManifestEntry(path=name, ref=join(url, name), digest=digest(entry), size=entry["bytes"])
        artifact.manifest.add_entry(shown)


def _published(run: Run, folder: Path) -> str | None:
    """Where an ensemble was published, without secrets; None where it was not."""
    record = (_read(run.path / "published.json") or {}).get(folder.relative_to(run.path).as_posix())
    return None if record is None else without_secrets(record["url"])


def _value_at(dataset: dict[str, Any], alpha: float) -> float | None:
    return next((each["value"] for each in dataset["alphas"] if each["alpha"] == alpha), None)


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON file of the report; None where there is none: it is being written anew."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
