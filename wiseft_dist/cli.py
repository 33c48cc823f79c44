"""The `wiseft` command: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from wiseft_dist import __version__
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate_command import evaluate
from wiseft_dist.merge_command import merge
from wiseft_dist.printable import printable
from wiseft_dist.shards_command import app as shards_app

app = typer.Typer(
    name="wiseft",
    help="Robust fine-tuning of zero-shot models (WiSE-FT) at cluster scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(shards_app)
app.command()(merge)
app.command()(evaluate)

DEBUG = False
INTERRUPTED = 130

ConfigFile = Annotated[Path, typer.Argument(help="Configuration file (YAML).", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, such as finetune.epochs=5.", metavar="[KEY=VALUE]...")
]
RunDirectory = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        _stop(error, 2)
    except RunError as error:
        _stop(error, 1)
    except OSError as error:
        _stop(error, 1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer's word for a KeyboardInterrupt
            print("wiseft: interrupted. Run the same command again to go on.", file=sys.stderr)
        raise
    sys.exit(0)


def _stop(error: Exception, code: int) -> NoReturn:
    if DEBUG:
        traceback.print_exception(error)
    print("wiseft: " + printable(str(error), keep="\n"), file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(f"wiseft {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Robust fine-tuning of zero-shot models (WiSE-FT) at cluster scale."""
    global DEBUG
    DEBUG = debug


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", help="Where pictures and runs are written.")] = Path(
        "runs/quickstart"
    ),
) -> None:
    """Go the whole road on made-up pictures, on a CPU, in minutes."""
    from wiseft_dist.quickstart.road import quickstart as go

    go(output)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit and return (Slurm).")] = False,
) -> None:
    """Submit what is not committed yet and follow it; run again to resume."""
    from wiseft_dist.config import load_config
    from wiseft_dist.launch.start import start

    start(load_config(config, overrides or []), detach=detach)


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what would run where: jobs, ranks, batches, steps. Touches nothing."""
    from wiseft_dist.config import load_config
    from wiseft_dist.launch.start import preview

    described = preview(load_config(config, overrides or []))
    print(json.dumps(described, indent=1) if as_json else _plan_text(described))


def _plan_text(described: dict[str, Any]) -> str:
    lines = [_job_text(job) for job in described["jobs"]] or ["nothing left to do"]
    batch = (
        f"batch {described['global_batch_size']} = {described['world_size']} ranks x {described['micro_batch_size']} "
        f"x {described['accumulation_steps']} accumulation; {described['steps']} steps for {described['epochs']:g} "
        f"epochs of {described['training_samples']} samples in {described['training_shards']} shards "
        f"({described['held_out_samples']} held out)"
    )
    tests = ", ".join(f"{name} {count}" for name, count in described["test_samples"].items())
    return "\n".join([*lines, batch, f"{len(described['alphas'])} alphas on: {tests or 'nothing'}"])


def _job_text(job: dict[str, Any]) -> str:
    """A line: the job's name, its processes and, of the evaluation, how many images of each dataset it scores."""
    images = ", ".join(f"{name} {count}" for name, count in job.get("images", {}).items())
    text = f"{job['name']:<24} {job['nodes']} x {job['tasks_per_node']} processes, {job['gpus_per_node']} GPUs a node"
    return f"{text}; images: {images}" if images else text


@app.command()
def finetune(run_directory: RunDirectory) -> None:
    """Run the fine-tuning stage in this process group (torchrun, srun)."""
    _stage("finetune", run_directory)


@app.command()
def report(run_directory: RunDirectory) -> None:
    """Write results.csv, the curve and the page of an evaluated run, and print its table."""
    from wiseft_dist.launch.start import print_summary
    from wiseft_dist.run import Run

    _stage("report", run_directory)
    print_summary(Run(run_directory.absolute()))


def _stage(stage: str, run_directory: Path) -> None:
    from wiseft_dist.pipeline import execute
    from wiseft_dist.run import Run

    execute(stage, Run(run_directory.absolute()))
