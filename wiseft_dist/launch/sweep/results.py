"""The numbers of a sweep's runs, side by side: read from their reports, without computing anything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.commits import write_atomically
from wiseft_dist.launch.lock import holder
from wiseft_dist.launch.status_records import NOT_STARTED
from wiseft_dist.launch.sweep.directory import SOUP, Sweep
from wiseft_dist.launch.sweep.names import short_keys, value_text
from wiseft_dist.launch.sweep.states import RunState, run_states
from wiseft_dist.run import Run

POINTS = {"zero_shot": 0.0, "fixed": 0.5, "chosen": None, "finetuned": 1.0}
"""The alphas worth comparing; ``chosen`` is ID-val's choice in each run."""


@dataclass(frozen=True)
class Point:
    """An ensemble of a run. Fractions of the datasets' own metrics; None where there is none."""

    alpha: float
    reference: float | None
    shift_average: float | None


@dataclass(frozen=True)
class Row:
    """A run, or the soup."""

    name: str
    settings: dict[str, Any]
    state: RunState
    id_val: float | None = None
    """On the held-out piece of the training set, at the alpha that is chosen there; a fraction."""
    points: dict[str, Point] | None = None
    """By the names of :data:`POINTS`, those that were evaluated; None before the report."""


@dataclass(frozen=True)
class Results:
    """All runs of a sweep, the best on ID-val first, those without a result last."""

    sweep: Sweep
    rows: tuple[Row, ...]
    is_at_work: bool
    """Whether a `wiseft sweep` is; what has not started then still may."""

    @property
    def best(self) -> Row | None:
        """The choice among the runs: by ID-val alone, the shifts are not looked at."""
        return next((row for row in self.rows if row.id_val is not None), None)

    @property
    def failed(self) -> list[Row]:
        """Those that ended without their result."""
        ended = [row for row in self.rows if row.state.has_ended and not row.state.is_finished]
        return [row for row in ended if not self.is_at_work or row.state.state != NOT_STARTED]

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of any run by itself."""
        return not self.is_at_work and all(row.state.has_ended for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sweep": str(self.sweep.folder),
            "keys": list(self.sweep.keys),
            "soup": self.sweep.soup,
            "best": self.best.name if self.best else None,
            "chosen_on": "id_val",
            "runs": [asdict(row) for row in self.rows],
        }


def gather(sweep: Sweep) -> Results:
    """The state and the numbers of every run, and of the soup where there is to be one.

    Raises:
        RunError: if Slurm does not answer.
    """
    settings = {member.name: member.settings for member in sweep.members}
    if sweep.soup != "none":
        settings[SOUP] = {}
    states = run_states(sweep, [sweep.run(name) for name in settings])
    rows = [
        _with_numbers(Row(name, each, state), sweep.run(name))
        for (name, each), state in zip(settings.items(), states, strict=True)
    ]
    in_order = sorted(rows, key=lambda row: (row.id_val is None, -(row.id_val or 0.0)))
    return Results(sweep, tuple(in_order), is_at_work=holder(Run(sweep.folder)) is not None)


def write_csv(results: Results, file: Path) -> None:
    """One line a run; accuracies are fractions."""
    short = short_keys(results.sweep.keys)
    columns = [f"{point}_{number}" for point in POINTS for number in ("alpha", "reference", "shift_average")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *short.values(), "state", "is_best", "id_val", *columns])
    for row in results.rows:
        own = [value_text(row.settings[key]) if key in row.settings else "" for key in short]
        points = [number for name in POINTS for number in _numbers((row.points or {}).get(name))]
        writer.writerow([row.name, *own, row.state.state, int(row is results.best), _text(row.id_val), *points])
    write_atomically(file, text.getvalue())


def _numbers(point: Point | None) -> list[str]:
    if point is None:
        return ["", "", ""]
    return [f"{point.alpha:g}", _text(point.reference), _text(point.shift_average)]


def _text(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.6f}"


def _with_numbers(row: Row, run: Run) -> Row:
    """With what its report says, once the run is finished: an earlier one may be of other models."""
    if not row.state.is_finished or not run.statistics_file.is_file():
        return row
    statistics = json.loads(run.statistics_file.read_text())
    chosen = next((each["alpha"] for each in statistics["choices"] if each["name"] == "id_val"), None)
    alphas = {name: chosen if alpha is None else alpha for name, alpha in POINTS.items()}
    points = {
        name: Point(alpha, _value(_reference(statistics), alpha), _value(statistics["shift_average"], alpha))
        for name, alpha in alphas.items()
        if alpha is not None and alpha in statistics["alphas"]
    }
    id_val = [each for each in statistics["datasets"].values() if each["role"] == "id_val"]
    value = _value(id_val[0]["alphas"], chosen) if id_val and chosen is not None else None
    return Row(row.name, row.settings, row.state, value, points)


def _reference(statistics: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """By alpha; empty where only the held-out piece was evaluated, which stands in for it there."""
    name = statistics["reference"]
    return [] if name is None else list(statistics["datasets"][name]["alphas"])


def _value(by_alpha: Sequence[Mapping[str, Any]], alpha: float) -> float | None:
    return next((each["value"] for each in by_alpha if each["alpha"] == alpha), None)
