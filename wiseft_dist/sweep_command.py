"""The `wiseft sweep` command: a run for every combination of settings, one table of all of them, and their soup."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.printable import printable
from wiseft_dist.status_command import CLEAR_SCREEN, WATCH_SECONDS

if TYPE_CHECKING:
    from wiseft_dist.launch.sweep.results import Results


ConfigFile = Annotated[
    Path, typer.Argument(help="Configuration file (YAML); with --table a sweep's folder.", metavar="CONFIG")
]
Grid = Annotated[
    list[str] | None,
    typer.Argument(help="Settings with several values, such as finetune.epochs=5,10, or with one for all runs.",
                   metavar="[KEY=VALUE,VALUE]..."),
]  # fmt: skip
Output = Annotated[Path | None, typer.Option("--output", help="The sweep's folder.", show_default="output of CONFIG")]
AtOnce = Annotated[int | None, typer.Option("--at-once", min=1, help="Runs that may be at work at the same time.")]
Soup = Annotated[
    Literal["uniform", "greedy", "none"] | None,
    typer.Option("--soup", help="Average of the runs' models: uniform, greedy or none.", show_default="uniform"),
]
OfFinished = Annotated[
    bool | None,
    typer.Option("--soup-of-finished/--soup-of-all", help="Make the soup without runs that failed.",
                 show_default="of all"),
]  # fmt: skip
Detach = Annotated[bool, typer.Option("--detach", help="Submit and return.")]
Preview = Annotated[bool, typer.Option("--plan", help="Only show what would be run or submitted.")]
ShowTable = Annotated[bool, typer.Option("--table", help="Only show the table of the sweep in this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def sweep(
    config: ConfigFile,
    settings: Grid = None,
    output: Output = None,
    at_once: AtOnce = None,
    soup: Soup = None,
    soup_of_finished: OfFinished = None,
    detach: Detach = False,
    preview: Preview = False,
    table: ShowTable = False,
    as_json: AsJson = False,
) -> None:
    """Make a run for every combination of settings, compare them in a table and average them in a soup."""
    if table:
        return _table(config, settings, as_json=as_json)
    from wiseft_dist.launch.sweep.plan import Asked, describe, plan_sweep

    asked = Asked(config, tuple(settings or ()), output, at_once, soup, soup_of_finished)
    if preview:
        described = describe(plan_sweep(asked))
        print(json.dumps(described, indent=1) if as_json else _plan_text(described))
        return None
    return _start(asked, detach=detach, as_json=as_json)


def status(folder: Path, *, as_json: bool = False, watch: bool = False) -> None:
    """Print the table of a sweep as it is now; ``watch``: again and again, until nothing of it is under way.

    Raises:
        UserError: if there is no sweep in the folder.
        RunError: if Slurm does not answer.
    """
    from wiseft_dist.launch.sweep.directory import read_sweep
    from wiseft_dist.launch.sweep.results import gather
    from wiseft_dist.launch.sweep.table import show

    while True:
        results = gather(read_sweep(folder))
        if watch and sys.stdout.isatty():
            print(CLEAR_SCREEN, end="")
        show(results, as_json=as_json)
        if not watch or results.is_over:
            return
        time.sleep(WATCH_SECONDS)


def _table(folder: Path, settings: list[str] | None, *, as_json: bool) -> None:
    if settings:
        raise UserError("--table goes with a sweep's folder alone: wiseft sweep --table OUTPUT.")
    status(folder, as_json=as_json)


def _start(asked: Any, *, detach: bool, as_json: bool) -> None:
    from wiseft_dist.launch.sweep.results import gather, write_csv
    from wiseft_dist.launch.sweep.start import start
    from wiseft_dist.launch.sweep.table import show

    sweep = start(asked, detach=detach).sweep
    if detach:
        print(f"`wiseft sweep --table {sweep.folder}` shows how far it is.")
        return
    results = gather(sweep)
    write_csv(results, sweep.folder / "sweep.csv")
    show(results, as_json=as_json)
    compare_finished(results)
    if results.failed:
        names = ", ".join(row.name for row in results.failed)
        raise RunError(f"{len(results.failed)} of {len(results.rows)} runs have no result: {names}.")


def compare_finished(results: Results) -> None:
    """The page that compares the finished runs, the best on ID-val first; what is wrong with it stops nobody."""
    from wiseft_dist.report.compare.comparison import DEFAULT_FILE, write_comparison

    sweep = results.sweep
    finished = [row.name for row in results.rows if row.state.is_finished and row.points]
    others = [row.name for row in results.rows if row.name not in finished]
    if len(finished) < 2:
        return
    file = sweep.folder / DEFAULT_FILE
    notes = [f"Left out, because they have no result: {', '.join(others)}."] if others else []
    try:
        write_comparison([str(sweep.run(name).path) for name in finished], file, notes=notes)
        told = f"Comparison: {file}"
    except Exception as error:  # the sweep is over and its results are written: no page may undo that
        told = f"wiseft: no page that compares the runs: {str(error) or type(error).__name__}"
    print(printable(told), file=sys.stderr)  # standard output may be JSON


def _plan_text(described: dict[str, Any]) -> str:
    lines = [f"{len(described['runs'])} runs in {described['sweep']} ({described['executor']}), "
             f"soup: {described['soup']}"]  # fmt: skip
    for run in described["runs"]:
        lines.append(f"  {run['name']}: {', '.join(run['missing']) or 'nothing left to do'}")
    for place, array in enumerate(described.get("arrays", ())):
        after = f", after {', '.join(map(str, array['after']))} task by task" if array["after"] else ""
        lines.append(
            f"array {place}: {array['job']:<20} {array['tasks']} tasks x {array['ranks']} ranks on {array['nodes']} "
            f"nodes, {array['at_once']} at once{after}"
        )
    lines += [f"{finding['level']}: {finding['text']}" for finding in described.get("slurm", ())]
    return "\n".join([*lines, *described["warnings"]])
