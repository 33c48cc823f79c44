"""The `wiseft report` command: the report of one run, or a page that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wiseft_dist.errors import UserError

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Run directory; several, or the folder of a sweep, are compared. A URL may name a published run.",
        metavar="RUN...",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="The page of a comparison.", show_default="comparison.html")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", help="What the comparison calls a run: once for each, in their order.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is no comparison.")]


def report(runs: Runs, output: Output = None, names: Names = None, force: Force = False) -> None:
    """Write the report of an evaluated run and print its table; or compare the reports of several runs in one page."""
    given = _given(runs)
    if given is None:
        if output is not None or names or force:
            raise UserError("--output, --name and --force go with a comparison: `wiseft report RUN1 RUN2`.")
        _report(runs[0])
        return
    from wiseft_dist.report.compare.comparison import DEFAULT_FILE, write_comparison

    file = Path(DEFAULT_FILE) if output is None else output.expanduser()
    write_comparison(given.places, file, names=names or (), notes=given.notes, force=force)
    print(f"Comparison: {file}")


@dataclass(frozen=True)
class _Given:
    """What is compared."""

    places: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """A sentence for each sweep of which not every run has a report."""


def _given(places: Sequence[str]) -> _Given | None:
    """Each place once, and for a sweep its members; None for one run.

    Raises:
        UserError: if a sweep has no two runs with a report.
    """
    from wiseft_dist import storage
    from wiseft_dist.launch.sweep.directory import is_sweep

    found: dict[str, str] = {}
    notes: list[str] = []
    is_one_run = len(places) == 1 and not storage.is_remote(places[0])
    for place in places:
        if storage.is_remote(place):
            found.setdefault(place, place)
            continue
        folder = storage.local_path(place)
        members, missing = _members(folder) if is_sweep(folder) else ([folder.absolute()], [])
        for member in members:
            found.setdefault(str(member.resolve()), str(member))
        is_one_run = is_one_run and not is_sweep(folder)
        if missing:
            count = f"{len(missing)} of {len(members) + len(missing)} runs of the sweep {folder.name}"
            notes.append(f"{count} have no report and are left out: {', '.join(missing)}.")
    return None if is_one_run else _Given(tuple(found.values()), tuple(notes))


def _members(folder: Path) -> tuple[list[Path], list[str]]:
    """The directories of a sweep's runs that have a report, the soup last, and the names of those that have none."""
    from wiseft_dist.launch.sweep.directory import read_sweep

    sweep = read_sweep(folder)
    runs = [sweep.run(member.name) for member in sweep.members]
    if sweep.soup != "none":
        runs.append(sweep.soup_run)
    members = [run.path for run in runs if run.statistics_file.is_file()]
    if len(members) < 2:
        raise UserError(
            f"{folder}: {len(members)} of its {len(runs)} runs have a report, and a comparison needs two. "
            f"`wiseft status {folder}` shows how far they are."
        )
    return members, [run.path.name for run in runs if not run.statistics_file.is_file()]


def _report(place: str) -> None:
    """One stage, in this process."""
    from wiseft_dist.launch.start import print_summary
    from wiseft_dist.pipeline import execute
    from wiseft_dist.run import Run

    run = Run(Path(place).absolute())
    execute("report", run)
    print_summary(run)
