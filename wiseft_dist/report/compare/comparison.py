"""Write the page that compares runs, without taking the place of a file that is something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wiseft_dist.commits import write_atomically
from wiseft_dist.errors import UserError
from wiseft_dist.report.compare.contents import page_of_runs
from wiseft_dist.report.compare.given import read_runs
from wiseft_dist.report.page.render import render

DEFAULT_FILE = "comparison.html"
MARK = "<!-- wiseft: a comparison of runs -->"
"""The last line of such a page: one that may be written anew."""


def write_comparison(
    places: Sequence[str],
    file: Path,
    *,
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Compare finished runs and write the page.

    Args:
        places: Run directories, or URLs that runs were published to; the others are held against the first.
        file: The page.
        names: What to call the runs; left out, their directories' names.
        notes: Cautions that stand on the page beside its own.
        force: Whether any file may be replaced.

    Raises:
        UserError: before anything is written: if a run has no report, they share no dataset, or the file is taken.
    """
    refuse_target(file, force=force)
    page = page_of_runs(read_runs(places, names), notes)
    write_atomically(file, f"{render(page).rstrip()}\n{MARK}\n")


def refuse_target(file: Path, *, force: bool) -> None:
    """Refuse what cannot be the page, and what is there and is none.

    Raises:
        UserError: naming it.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: name a file in it, such as {file / DEFAULT_FILE}.")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}. Make it first, or choose another --output.")
    if file.exists() and not force and not is_comparison(file):
        raise UserError(f"{file} is no comparison of runs. --force replaces it, --output writes elsewhere.")


def is_comparison(file: Path) -> bool:
    """Whether a file is a page that :func:`write_comparison` wrote."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - 2 * len(MARK)))
        return handle.read().decode(errors="replace").rstrip().endswith(MARK)
