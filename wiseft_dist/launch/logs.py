"""What a job's processes print: the end of it, and what they go on to say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.endings import last_lines
from wiseft_dist.launch.known_jobs import known_jobs
from wiseft_dist.launch.ledger import Entry, log_file
from wiseft_dist.launch.local_jobs import is_alive
from wiseft_dist.launch.patience import Patience
from wiseft_dist.printable import printable
from wiseft_dist.run import Run
from wiseft_dist.slurm import active_ids

POLL_SECONDS = 0.5
STATE_SECONDS = 3.0
"""Between two questions whether the job still is."""
CHUNK_BYTES = 2**20


def choose_job(run: Run, name: str | None = None) -> Entry:
    """The job whose log is wanted.

    Args:
        run: The run.
        name: A stage or one of its jobs, ``evaluate/2-of-3``; left out: any. Of several the one that wrote last counts,
            of those that have not written, the first.

    Raises:
        UserError: if the run has no such job.
    """
    entries = list(known_jobs(run).values())
    fitting = [entry for entry in entries if name in (None, entry.name, entry.stage)]
    if not entries:
        raise UserError(f"{run.path}: no job was submitted yet. Start them with `wiseft run {run.config_file}`.")
    if not fitting:
        stages = ", ".join(dict.fromkeys(entry.stage for entry in entries))
        raise UserError(f"{name} is no job of {run.path}. Jobs were submitted for: {stages}.")
    written = [entry for entry in fitting if log_file(entry, 0).is_file()]
    return max(written, key=lambda entry: log_file(entry, 0).stat().st_mtime, default=fitting[0])


def log_files(entry: Entry, rank: int | None) -> dict[int, Path]:
    """The logs that there are of a job, by rank.

    Args:
        entry: The job.
        rank: Of one process; None: of all.
    """
    if rank is not None or entry.log is not None:
        file = log_file(entry, rank or 0)
        return {rank or 0: file} if file.is_file() else {}
    found = Path(entry.folder).glob(f"{entry.job_id}_*_log.out")
    ranks = {file.name.removeprefix(f"{entry.job_id}_").removesuffix("_log.out"): file for file in found}
    return {
        int(text): file for text, file in sorted(ranks.items(), key=lambda item: item[0].zfill(9)) if text.isdigit()
    }


def show(entry: Entry, rank: int | None, num_lines: int, say: Callable[[str], None]) -> None:
    """Say the last lines of a job's log, of all its processes with their ranks before them.

    Raises:
        RunError: if it has written none, or not that one.
    """
    files = log_files(entry, rank)
    if not files:
        raise RunError(f"{_without_log(entry, rank)}.")
    for number, file in files.items():
        for line in last_lines(file, num_lines) or ():
            say(_shown(number if rank is None else None, line))


def follow(run: Run, entry: Entry, rank: int | None, num_lines: int, say: Callable[[str], None]) -> None:
    """As :func:`show`, and go on with whatever is written, also after a requeue, until the job ends.

    When the run submits the same job anew meanwhile, its log is followed from its beginning.

    Raises:
        RunError: if the job has ended and left no log, or Slurm stays silent.
    """
    files = _Files(entry, rank, say)
    files.begin(num_lines)
    patience = Patience(lambda text: say(f"-- {printable(text)} --"), meanwhile="the log is followed on")
    asked, is_active = 0.0, True
    while True:
        if is_active and time.monotonic() - asked >= STATE_SECONDS:
            is_active, asked = _is_active(entry, patience), time.monotonic()
        files.read_on()
        if not is_active:
            newer = known_jobs(run).get(entry.name, entry)
            if newer.job_id == entry.job_id:
                break
            say(f"-- {entry.name} is now job {newer.job_id} --")
            entry, is_active, files = newer, True, _Files(newer, rank, say)
        time.sleep(POLL_SECONDS)
    files.read_on(also_unfinished=True)
    if not files.positions:
        raise RunError(f"{_without_log(entry, rank)}, and has ended.")


@dataclass
class _Files:
    """The logs of a job while they grow."""

    entry: Entry
    rank: int | None
    say: Callable[[str], None]
    positions: dict[int, int] = field(default_factory=dict)
    """By rank, the bytes that were said."""

    def begin(self, num_lines: int) -> None:
        """Say the last lines of what there is."""
        for number, file in log_files(self.entry, self.rank).items():
            size = file.stat().st_size
            self.positions[number] = _start_of_last(file, size, num_lines)

    def read_on(self, *, also_unfinished: bool = False) -> None:
        """Say the whole lines that have come; at the end also a line that nobody finished."""
        for number, file in log_files(self.entry, self.rank).items():
            position = self.positions.setdefault(number, 0)
            with file.open("rb") as handle:
                handle.seek(position)
                while chunk := handle.read(CHUNK_BYTES):
                    is_last = len(chunk) < CHUNK_BYTES
                    whole = chunk if also_unfinished and is_last else _whole_lines(chunk)
                    if not whole and not is_last:
                        whole = chunk  # one line of such a length
                    self._say_lines(number, whole)
                    position += len(whole)
                    handle.seek(position)
                    if is_last:
                        break
            self.positions[number] = position

    def _say_lines(self, number: int, text: bytes) -> None:
        for line in text.decode(errors="replace").splitlines():
            self.say(_shown(number if self.rank is None else None, line))


def _whole_lines(chunk: bytes) -> bytes:
    return chunk[: chunk.rfind(b"\n") + 1]


def _start_of_last(file: Path, size: int, num_lines: int) -> int:
    """The byte at which the last lines of a file begin; not all of a long file is looked at."""
    start = max(0, size - max(2**16, 400 * num_lines))
    with file.open("rb") as handle:
        handle.seek(start)
        lines = handle.read(size - start).splitlines(keepends=True)
    return size - sum(map(len, lines[-num_lines:])) if num_lines else size


def _is_active(entry: Entry, patience: Patience) -> bool:
    """Whether a job still is; while Slurm's controller is away, it is taken to be."""
    if entry.executor == "local":
        return is_alive(entry)
    active = patience.ask(lambda: active_ids([entry.job_id], patience_seconds=0.0))
    return active is None or bool(active)


def _shown(rank: int | None, line: str) -> str:
    text = printable(line, keep="\t")
    return text if rank is None else f"[{rank}] {text}"


def _without_log(entry: Entry, rank: int | None) -> str:
    if entry.executor == "slurm" and not Path(entry.folder).is_dir():
        return f"{entry.name} (job {entry.job_id}) was started by hand: it prints where its job does"
    whose = "" if rank in (None, 0) else f" of rank {rank}"
    return f"{entry.name} (job {entry.job_id}) has no log{whose} in {entry.folder}: it has not started"


def paths_text(files: Sequence[Path]) -> str:
    """One path a line."""
    return "\n".join(printable(str(file)) for file in files)
