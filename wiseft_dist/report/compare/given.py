"""The runs that are compared, as their reports, settings and events tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from wiseft_dist import storage
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.history import History, history
from wiseft_dist.report.results import parse_statistics
from wiseft_dist.run import Run
from wiseft_dist.storage.urls import without_secrets


@dataclass(frozen=True)
class Compared:
    """One run of a comparison."""

    name: str
    """What the page calls it."""
    place: str
    """Its directory, or the folder of a store that its report was published to."""
    statistics: Statistics
    """Of its report."""
    run: Run | None = None
    """None of a published report: there is no run directory."""
    config: RunConfig | None = None
    """None of a published report."""
    history: History = field(default_factory=History)
    """What its events say; nothing of a published report."""


def read_runs(places: Sequence[str], names: Sequence[str] = ()) -> tuple[Compared, ...]:
    """Read what is compared.

    Args:
        places: Run directories, or URLs of published runs; each once.
        names: What to call them; left out, as much of the places as tells them apart.

    Raises:
        UserError: if there are not two, a name occurs twice, or a report is missing or of an old version: naming all
            of these runs.
    """
    if len(places) < 2:
        raise UserError("a comparison needs two runs: `wiseft report RUN1 RUN2`, or the folder of a sweep.")
    names = names or distinct_names(places)
    _refuse_names(names, places)
    return tuple(
        _compared(name, place, statistics)
        for name, place, statistics in zip(names, places, _all_statistics(places), strict=True)
    )


def distinct_names(places: Sequence[str]) -> tuple[str, ...]:
    """The last part of each place, and so many of those before it that no two are the same."""
    parts = [PurePosixPath(place.rstrip("/")).parts for place in places]
    for length in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(each[-length:]) for each in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(places)


def _refuse_names(names: Sequence[str], places: Sequence[str]) -> None:
    if len(names) != len(places):
        raise UserError(f"--name was given {len(names)} times for {len(places)} runs: give it once for each run.")
    for name in names:
        if not name.strip():
            raise UserError("--name: a name needs a character that shows.")
        if list(names).count(name) > 1:
            raise UserError(f"--name {name} was given twice: each run needs a name of its own.")


def _all_statistics(places: Sequence[str]) -> list[Statistics]:
    found, missing, unreadable = [], [], []
    for place in places:
        file = _statistics_file(place)
        text = _text(place, file)
        if text is None:
            missing.append(place)
            continue
        try:
            found.append(parse_statistics(text, file))
        except RunError:
            unreadable.append(place)
    if missing:
        raise UserError(
            f"{', '.join(map(without_secrets, missing))}: no report yet. `wiseft run` on its configuration finishes a "
            "run; `wiseft report RUN` writes the report of one that is evaluated."
        )
    if unreadable:
        raise UserError(
            f"{', '.join(map(without_secrets, unreadable))}: its report is of another version or damaged. Write it "
            "again with `wiseft report RUN`."
        )
    return found


def _statistics_file(place: str) -> str:
    if storage.is_remote(place):
        return storage.join(place, "report/statistics.json")
    return str(Run(storage.local_path(place)).statistics_file)


def _text(place: str, file: str) -> str | None:
    """Of a report's numbers; None where there is no report.

    Raises:
        UserError: if a directory is no run.
        RunError: if a store does not answer.
    """
    if storage.is_remote(place):
        storage.refuse_credentials(place)
        return storage.read_text(file) if storage.exists(file) else None
    run = Run(storage.local_path(place))
    if not run.config_file.is_file():
        run.load_config()  # says what is wrong
    return run.statistics_file.read_text(encoding="utf-8") if run.statistics_file.is_file() else None


def _compared(name: str, place: str, statistics: Statistics) -> Compared:
    if storage.is_remote(place):
        return Compared(name, place, statistics)
    run = Run(storage.local_path(place).absolute())
    return Compared(name, place, statistics, run, run.load_config(), history(run))
