"""`wiseft doctor`: what works here, line by line, and what to do about what does not."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_dist.printable import printable

if TYPE_CHECKING:
    from wiseft_dist.config import RunConfig
    from wiseft_dist.findings import Finding

STORE_TRIES = "2"
STORE_SECONDS = "10"
NARROWEST = 60


def doctor(
    source: Annotated[
        Path | None, typer.Argument(help="A configuration or a run directory.", metavar="[CONFIG|RUN]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, such as launch.site=pyxis.", metavar="[KEY=VALUE]..."),
    ] = None,
    on_slurm: Annotated[bool, typer.Option("--slurm", help="Also check a node of each partition, by a job.")] = False,
    partition: Annotated[
        list[str] | None, typer.Option("--partition", "-p", help="With --slurm: this one only; may be repeated.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="With --slurm: seconds to wait for a node.")
    ] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what works here: GPUs, disks, object stores, W&B, Slurm, and what a run needs of them."""
    # Somebody waits: a store that does not answer at once is what they want to hear of. What is set already stays.
    os.environ.setdefault("WISEFT_STORE_TRIES", STORE_TRIES)
    os.environ.setdefault("WISEFT_STORE_TIMEOUT", STORE_SECONDS)
    found = _look(_config(source, overrides or []), on_slurm=on_slurm, partitions=partition or [], seconds=timeout)
    is_well = not any(finding.level == "error" for finding in found)
    if as_json:
        print(json.dumps({"ok": is_well, "findings": [asdict(finding) for finding in found]}, indent=1))
    else:
        print(table(found, width=shutil.get_terminal_size((120, 25)).columns))
    if not is_well:
        raise typer.Exit(1)


def table(findings: Sequence[Finding], *, width: int) -> str:
    """A line for each finding, under the machine where it was made, and how many are not well."""
    columns = max((len(finding.check) for finding in findings), default=0)
    lines: list[str] = []
    for host in dict.fromkeys(finding.host for finding in findings):
        lines.append(printable(f"{host}:"))
        for finding in findings:
            if finding.host == host:
                lines += _row(finding, columns, max(width, NARROWEST))
    counts = {level: sum(finding.level == level for finding in findings) for level in ("warning", "error")}
    return "\n".join([*lines, f"{counts['error']} errors, {counts['warning']} warnings"])


def _row(finding: Finding, columns: int, width: int) -> list[str]:
    start = f"  {finding.level:<7}  {finding.check:<{columns}}  "
    return textwrap.wrap(
        printable(finding.text),
        width,
        initial_indent=printable(start),
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _look(config: RunConfig | None, *, on_slurm: bool, partitions: Sequence[str], seconds: float) -> list[Finding]:
    from wiseft_dist.errors import UserError
    from wiseft_dist.launch.doctor.cluster import check_cluster
    from wiseft_dist.launch.doctor.machine import check_machine
    from wiseft_dist.launch.doctor.sources import check_sources

    if partitions and not on_slurm:
        raise UserError("--partition goes with --slurm.")
    chosen = []
    if on_slurm:
        from wiseft_dist.launch.doctor.nodes import check_nodes, choose_partitions

        chosen = choose_partitions(config, partitions)
    found = check_machine(config) + check_cluster(config)
    if config is not None:
        found += check_sources(config)
    return found + (check_nodes(config, chosen, seconds=seconds) if chosen else [])


def _config(source: Path | None, overrides: Sequence[str]) -> RunConfig | None:
    if source is None:
        return None
    from wiseft_dist.config import load_config
    from wiseft_dist.launch.start import resolve_paths
    from wiseft_dist.run import Run

    if source.is_dir():
        return Run(source.absolute()).load_config()
    return resolve_paths(load_config(source, list(overrides)))
