"""`wiseft sync`: what happened in runs, brought to Weights & Biases now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.printable import printable
from wiseft_dist.run import Run

if TYPE_CHECKING:
    from wiseft_dist.tracking.sync import Sent, Target


def sync(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of sweeps.", metavar="RUN...")],
    project: Annotated[str | None, typer.Option("--project", help="W&B project, if not the configured one.")] = None,
    entity: Annotated[str | None, typer.Option("--entity", help="W&B user or team, if not the configured one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to send, and send nothing.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds for W&B to take what a stage has for it.")
    ] = 3600.0,
) -> None:
    """Send runs to Weights & Biases from their events: at any time, as often as you like, every step once."""
    from wiseft_dist.claims import at_work
    from wiseft_dist.tracking.sync import planned, require_login, targets

    found = [
        target
        for run in _each_run(runs)
        for target in targets(run, project=project, entity=entity, is_at_work=bool(at_work(run)))
    ]
    if dry_run:
        for target in found:
            _say(planned(target), "to send")
        return
    if found:
        require_login()
    done, errors = _send_all(found, timeout)
    for url in dict.fromkeys(sent.group_url for sent in done if sent.url):
        print(printable(url))
    if errors:
        raise errors[-1]
    if not found:
        print("There is nothing to send yet.")


def _send_all(found: list[Target], timeout: float) -> tuple[list[Sent], list[UserError | RunError]]:
    """One after the other; what is wrong with one says little about the next, but for the key."""
    from wiseft_dist.progress import progress_bar
    from wiseft_dist.tracking.sync import RefusedKeyError, Sent, send

    done: list[Sent] = []
    errors: list[UserError | RunError] = []
    with progress_bar("sending to W&B", total=len(found), unit="stages") as bar:
        for target in found:
            with progress_bar(printable(target.title), unit="rows") as rows:
                try:
                    done.append(send(target, on_row=rows.advance, timeout=timeout))
                except RefusedKeyError:
                    raise
                except (UserError, RunError) as error:
                    errors.append(error)
                    done.append(Sent(target, 0, skipped=str(error)))
            bar.advance()
            _say(done[-1], "sent")
    return done, errors


def _say(sent: Sent, what: str) -> None:
    target = sent.target
    text = f"not sent: {sent.skipped}" if sent.skipped else f"{sent.num_rows} rows {what}"
    print(printable(f"{target.run.path.name}: {target.title}: {text}"), flush=True)


def _each_run(paths: list[Path]) -> list[Run]:
    """The runs, and those of the sweeps among them that were begun."""
    from wiseft_dist.launch.sweep.directory import is_sweep, read_sweep

    runs = []
    for path in paths:
        if not is_sweep(path):
            runs.append(Run(path.absolute()))
            continue
        swept = read_sweep(path)
        members = [*(swept.run(member.name) for member in swept.members), swept.soup_run]
        runs += [run for run in members if run.config_file.is_file()]
    return runs
