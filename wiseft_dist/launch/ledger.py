"""``RUN/jobs/submitted.json``: which job was last handed to an executor for each part of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wiseft_dist.commits import write_atomically
from wiseft_dist.run import Run


@dataclass(frozen=True)
class Entry:
    """One job that was handed to an executor."""

    name: str
    """``merge``, ``evaluate/1-of-3``."""
    job_id: str
    """Slurm's, or the id of the process that started it here."""
    folder: str
    """Where submitit put its files; an absolute path."""
    executor: Literal["slurm", "local"]
    submitted: float
    """Seconds since 1970."""
    log: str | None = None
    """Where a job prints that somebody else submitted, such as ``slurm/run.sbatch``: one for several stages."""

    @property
    def stage(self) -> str:
        """``evaluate``."""
        return self.name.partition("/")[0]

    @property
    def part(self) -> str | None:
        """``1-of-3``."""
        return self.name.partition("/")[2] or None


def read_ledger(run: Run) -> dict[str, Entry]:
    """The newest job of each name, in the order of their submission; empty where nothing was submitted yet."""
    try:
        document = json.loads(ledger_file(run).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # it is replaced as a whole: what cannot be read is not ours
        return {}
    listed = document.get("jobs") if isinstance(document, dict) else None
    entries = [_absolute(run, Entry(**each)) for each in listed or [] if _is_entry(each)]
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.submitted)}


def record(run: Run, entries: Sequence[Entry]) -> None:
    """Remember jobs, at once or not at all; earlier ones of other names are kept. The caller holds the run's lock."""
    kept = read_ledger(run) | {entry.name: entry for entry in entries}
    run.jobs.mkdir(parents=True, exist_ok=True)
    jobs = [asdict(_relative(run, entry)) for entry in kept.values()]
    write_atomically(ledger_file(run), json.dumps({"jobs": jobs}, indent=1))


def log_file(entry: Entry, rank: int) -> Path:
    """What one process of the job prints; submitit names it, and a requeued job goes on in it."""
    if entry.log is not None:
        return Path(entry.log)  # all processes, and all stages of the job
    return Path(entry.folder) / f"{entry.job_id}_{rank}_log.out"


def ledger_file(run: Run) -> Path:
    """Where the ledger is."""
    return run.jobs / "submitted.json"


def _is_entry(value: Any) -> bool:
    fields = Entry.__dataclass_fields__.keys()
    return isinstance(value, dict) and fields - {"log"} <= value.keys() <= fields


def _relative(run: Run, entry: Entry) -> Entry:
    """With a folder that stays true when the run is moved."""
    folder = Path(entry.folder)
    is_inside = folder.is_relative_to(run.path)
    return replace(entry, folder=str(folder.relative_to(run.path))) if is_inside else entry


def _absolute(run: Run, entry: Entry) -> Entry:
    return replace(entry, folder=str(run.path.absolute() / entry.folder))
