"""`wiseft status`, `wiseft logs` and `wiseft cancel`: what a run is doing, what it says, and making it stop."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wiseft_dist.errors import UserError
from wiseft_dist.run import Run

WATCH_SECONDS = 5.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"

RunDirectory = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
Stage = Annotated[
    str | None,
    typer.Argument(help="A stage, or one of its jobs: evaluate/2-of-3.", metavar="[STAGE]", show_default=False),
]


def status(
    run_directory: RunDirectory,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every five seconds until it ends.")] = False,
) -> None:
    """Show how a run stands: stages, jobs, progress, what failed, what to do next."""
    from wiseft_dist.launch.sweep.directory import is_sweep

    run = Run(run_directory.absolute())
    if is_sweep(run.path):
        from wiseft_dist.sweep_command import status as sweep_status

        sweep_status(run.path, as_json=as_json, watch=watch)
        return
    from wiseft_dist.launch.status import run_status
    from wiseft_dist.launch.status_table import status_text

    while True:
        now = run_status(run)
        text = json.dumps(asdict(now), indent=1) if as_json else status_text(now)
        print((CLEAR_SCREEN if watch and sys.stdout.isatty() else "") + text, flush=True)
        if not watch or now.state in ("finished", "failed", "stopped"):
            return
        time.sleep(WATCH_SECONDS)


def logs(
    run_directory: RunDirectory,
    stage: Stage = None,
    rank: Annotated[str, typer.Option("--rank", help="Which process, or all.")] = "0",
    lines: Annotated[int, typer.Option("--lines", min=0, help="How many of the last lines.")] = 50,
    go_on: Annotated[bool, typer.Option("--follow", help="Go on until the job ends, through requeues.")] = False,
    job: Annotated[str | None, typer.Option("--job", help="A job by name: evaluate/2-of-3.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print where the logs are, and nothing else.")] = False,
) -> None:
    """Show what a job says: by default the one that wrote last."""
    from wiseft_dist.launch import logs as job_logs

    run = _opened(run_directory)
    wanted = None if rank == "all" else _number(rank)
    entry = job_logs.choose_job(run, job or stage)
    if path:
        print(job_logs.paths_text(list(job_logs.log_files(entry, wanted).values())))
    elif go_on:
        job_logs.follow(run, entry, wanted, lines, _say)
    else:
        job_logs.show(entry, wanted, lines, _say)


def cancel(
    run_directory: RunDirectory,
    stage: Stage = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """End the jobs of a run or a sweep, here or on Slurm; what is committed stays, and the same command goes on."""
    from wiseft_dist.launch.cancel import cancel as end
    from wiseft_dist.launch.cancel import under_way
    from wiseft_dist.launch.sweep.directory import is_sweep

    if is_sweep(run_directory):
        _cancel_sweep(run_directory, stage, yes=yes)
        return
    run = _opened(run_directory)
    found = under_way(run, stage)
    if not found.names:
        print(f"{run.path}: nothing to cancel{f' of {stage}' if stage else ''}.")
        return
    named = _few(found.names)
    if not yes:
        _ask(f"Cancel {named}?")
    end(run, found, stage)
    print(f"Cancelled: {named}. `wiseft run {run.config_file}` goes on from what is committed.")


def _cancel_sweep(folder: Path, stage: str | None, *, yes: bool) -> None:
    from wiseft_dist.launch.sweep.cancel import cancel_sweep, sweep_under_way
    from wiseft_dist.launch.sweep.directory import read_sweep

    if stage is not None:
        raise UserError(f"{folder} is a sweep: it is cancelled as a whole, or `wiseft cancel` one of its runs.")
    sweep = read_sweep(folder)
    found = sweep_under_way(sweep)
    if not found.names:
        print(f"{sweep.folder}: nothing to cancel.")
        return
    if not yes:
        _ask(f"Cancel {_few(found.names)}?")
    cancel_sweep(sweep, found)
    print(f"Cancelled: {_few(found.names)}. The same `wiseft sweep` goes on from what is committed.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"{question} Nobody is here to answer: say --yes.")
    typer.confirm(question, abort=True)


def _opened(directory: Path) -> Run:
    run = Run(directory.absolute())
    if not run.config_file.is_file() and not run.jobs.is_dir():
        run.load_config()  # says what the directory is not
    return run


def _number(rank: str) -> int:
    if not rank.isdecimal():
        raise UserError(f"--rank: {rank} is neither a number nor `all`.")
    return int(rank)


def _say(line: str) -> None:
    print(line, flush=True)
