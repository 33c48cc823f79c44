"""The `wiseft` command: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from wiseft_dist import __version__
from wiseft_dist.doctor_command import doctor
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate_command import evaluate
from wiseft_dist.merge_command import merge
from wiseft_dist.plan_command import plan
from wiseft_dist.printable import printable
from wiseft_dist.report_command import report
from wiseft_dist.shards_command import app as shards_app
from wiseft_dist.status_command import cancel, logs, status
from wiseft_dist.sweep_command import sweep
from wiseft_dist.sync_command import sync

app = typer.Typer(
    name="wiseft",
    help="Robust fine-tuning of zero-shot models (WiSE-FT) at cluster scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEBUG = False
INTERRUPTED = 130

ConfigFile = Annotated[Path, typer.Argument(help="Configuration file (YAML).", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, such as finetune.epochs=5.", metavar="[KEY=VALUE]...")
]
RunDirectory = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]


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


def quickstart(
    output: Annotated[Path, typer.Option("--output", help="Where pictures and runs are written.")] = Path(
        "runs/quickstart"
    ),
) -> None:
    """Go the whole road on made-up pictures, on a CPU, in minutes."""
    from wiseft_dist.quickstart.road import quickstart as go

    go(output)


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit and return (Slurm).")] = False,
    only_prepare: Annotated[
        bool, typer.Option("--prepare", help="Write the run directory, print its path and submit nothing.")
    ] = False,
) -> None:
    """Submit what is not committed yet and follow it; run again to resume."""
    from wiseft_dist.config import load_config
    from wiseft_dist.launch.start import prepare, start

    loaded = load_config(config, overrides or [])
    if only_prepare:
        print(prepare(loaded).path)
    else:
        start(loaded, detach=detach)


def finetune(run_directory: RunDirectory) -> None:
    """Run the fine-tuning stage in this process group (torchrun, srun)."""
    _stage("finetune", run_directory)


def _stage(stage: str, run_directory: Path) -> None:
    from wiseft_dist.pipeline import execute
    from wiseft_dist.run import Run

    execute(stage, Run(run_directory.absolute()))


# In the order of --help: a run from its beginning to its end, its stages one by one, what is beside it.
for command in (quickstart, plan, run, status, logs, cancel, sweep, finetune, merge, evaluate, report, sync, doctor):
    app.command()(command)
app.add_typer(shards_app)
