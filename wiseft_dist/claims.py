"""Whose turn it is: a small file for each stage (and each job of the evaluation) that names its newest attempt.

A node whose slurmd dies keeps its processes, while Slurm starts the job again elsewhere: then two attempts would write
to one run. The newer one takes the file over, and every process of the older one ends itself as soon as it sees that.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread

from wiseft_dist.commits import write_atomically
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.ranks import Launcher, Ranks, machine, node_name, started_at
from wiseft_dist.run import Run
from wiseft_dist.slurm import job_states
from wiseft_dist.tracking import append_event

LOOK_SECONDS = 5.0
"""Between two looks of a process at whether its attempt is still the newest."""
LEAVING_SECONDS = 10.0
"""How long a process that has just been told to end may still be there."""
MAX_QUEUE_SECONDS = 30.0
"""How long Slurm is asked whether another job still runs."""


class StageTakenError(UserError):
    """Somebody else is at work on the stage: nothing was started, and nothing has failed."""


@dataclass(frozen=True)
class Claim:
    """An attempt at a stage."""

    number: int
    """Above that of every attempt before."""
    attempt: str
    """Which one: the same for all its processes, as :class:`wiseft_dist.ranks.Launcher` has it."""
    job_id: str
    restart: int
    host: str
    """Of its first rank, like what follows."""
    machine: str
    pid: int
    pid_started: int | None
    since: float
    """Seconds since 1970."""
    is_over: bool = False
    """Whether its first rank has left."""


def claim_file(run: Run, stage: str, part: str | None) -> Path:
    """Where the newest attempt at a stage, or at one job of the evaluation, is named."""
    return run.jobs / "attempts" / (f"{stage}.json" if part is None else f"{stage}-{part}.json")


def read_claim(file: Path) -> Claim | None:
    """The newest attempt; None where there was none, or the file cannot be read now."""
    try:
        return Claim(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def open_claims(run: Run) -> dict[str, Claim]:
    """The attempts whose first rank has not left, by the names of the jobs, such as ``evaluate/1-of-3``."""
    files = sorted((run.jobs / "attempts").glob("*.json"))
    claims = {"/".join(file.stem.split("-", 1)): read_claim(file) for file in files}
    return {name: claim for name, claim in claims.items() if claim is not None and not claim.is_over}


def at_work(run: Run) -> dict[str, Claim]:
    """Who is at work on this run's stages now, whoever started it: by the names of the jobs, such as ``finetune``.

    A process of this machine is looked for here, one of another machine's Slurm job at Slurm. Where Slurm does not
    answer, and of what was started on another machine without it, nothing can be told: it is left out.
    """
    claims = open_claims(run)
    elsewhere = {claim.job_id for claim in claims.values() if claim.machine != machine() and claim.job_id}
    running = _running(sorted(elsewhere))
    return {
        name: claim
        for name, claim in claims.items()
        if (_is_alive(claim) if claim.machine == machine() else claim.job_id in running)
    }


def take(file: Path, launcher: Launcher, name: str) -> int:
    """Name this process's attempt as the newest, unless another one is at work and nothing says that it is lost.

    What may live on where Slurm no longer looks gets the time to see that it is over.

    Args:
        file: The claim's.
        launcher: What started this process, the first rank.
        name: The stage's.

    Returns:
        The attempt's number.

    Raises:
        StageTakenError: if someone else is at work on it.
        RunError: if this is the older attempt.
    """
    deadline = time.monotonic() + LEAVING_SECONDS
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _alone(file):
            before = read_claim(file)
            holder = _at_work(before, launcher) if before is not None else None
            if before is None or holder is None:
                _refuse_older(before, launcher)
                own = _own_claim(launcher, number=1 + (before.number if before else 0))
                write_atomically(file, json.dumps(asdict(own)))
                break
        if time.monotonic() > deadline:
            raise StageTakenError(
                f"{holder} is at work on {name} of this run since {time.ctime(before.since)}; nothing was started. "
                "Wait for it, or end it first."
            )
        time.sleep(0.5)
    if before is not None and _may_live_on(before, launcher):
        time.sleep(2 * LOOK_SECONDS)
    return own.number


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Of several starts at one moment, one after the other reads the claim and writes it."""
    with file.with_suffix(".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _refuse_older(before: Claim | None, launcher: Launcher) -> None:
    if before is not None and before.job_id == launcher.job_id != "" and before.restart > launcher.restart:
        raise RunError(f"Slurm has started job {launcher.job_id} again meanwhile, on {before.host}: this start ends.")


def release(file: Path, launcher: Launcher) -> None:
    """The first rank leaves: whoever comes next need not wait for it."""
    with suppress(OSError), _alone(file):  # a full disk: the next one finds out by itself
        claim = read_claim(file)
        if claim is not None and claim.attempt == launcher.attempt:
            write_atomically(file, json.dumps(asdict(replace(claim, is_over=True))))


@contextmanager
def ending_when_taken_over(
    file: Path, run: Run, stage: str, launcher: Launcher, ranks: Ranks, own: int = 0
) -> Iterator[None]:
    """While it is entered, end this process soon after a newer attempt has taken its stage over.

    Args:
        file: The claim's.
        run: The run.
        stage: Which stage.
        launcher: What started this process.
        ranks: Its place.
        own: The number of its attempt, where it is known already.
    """
    done = Event()
    thread = Thread(target=_watch, args=(file, run, stage, launcher, ranks, own, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(LOOK_SECONDS)


def _watch(file: Path, run: Run, stage: str, launcher: Launcher, ranks: Ranks, own: int, done: Event) -> None:
    """Look at the claim; ``own`` is the number of this attempt, 0 until its first rank has written it."""
    while True:
        claim = read_claim(file)
        if claim is not None and claim.attempt == launcher.attempt:
            own = max(own, claim.number)
        elif claim is not None and _is_newer(claim, own, launcher):
            _end(claim, run, stage, launcher, ranks)
        if done.wait(LOOK_SECONDS):
            return


def _is_newer(claim: Claim, own: int, launcher: Launcher) -> bool:
    """Whether the attempt that a file names came after one's own, which it may not name yet."""
    if own:
        return claim.number >= own
    return claim.job_id == launcher.job_id != "" and claim.restart > launcher.restart


def _end(claim: Claim, run: Run, stage: str, launcher: Launcher, ranks: Ranks) -> None:
    by = f"job {claim.job_id}, start {claim.restart + 1}," if claim.job_id else f"process {claim.pid}"
    sentence = f"{by} on {claim.host} has taken over {stage}: rank {ranks.rank} on {node_name()} ends."
    if ranks.local_rank == 0:
        with suppress(OSError):
            append_event(
                run.events_file, stage=stage, event="taken_over", job_id=launcher.job_id, restart=launcher.restart,
                host=node_name(), text=sentence,
            )  # fmt: skip
    print(f"wiseft: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)  # the working thread may be in the middle of a collective, or of a file


def _own_claim(launcher: Launcher, *, number: int) -> Claim:
    pid = os.getpid()
    return Claim(
        number=number,
        attempt=launcher.attempt,
        job_id=launcher.job_id,
        restart=launcher.restart,
        host=node_name(),
        machine=machine(),
        pid=pid,
        pid_started=started_at(pid),
        since=time.time(),
    )


def _at_work(claim: Claim, launcher: Launcher) -> str | None:
    """Who is at work, where this can be told and is not an earlier start of this very job."""
    if claim.is_over or claim.attempt == launcher.attempt:
        return None
    if claim.job_id == launcher.job_id != "" and claim.restart != launcher.restart:
        return None  # Slurm ends a job before it starts it again, or knows it as lost
    if claim.machine == machine():
        return f"process {claim.pid}{_of_job(claim)} on {claim.host}" if _is_alive(claim) else None
    if claim.job_id and claim.job_id != launcher.job_id and _is_running(claim.job_id):
        return f"Slurm job {claim.job_id}"
    return None


def _may_live_on(claim: Claim, launcher: Launcher) -> bool:
    """Whether nobody knows that the attempt's processes are gone; at most those of its other ranks are, soon."""
    if claim.is_over or claim.attempt == launcher.attempt:
        return False
    return claim.machine != machine() or _is_alive(claim)


def _of_job(claim: Claim) -> str:
    return f" of Slurm job {claim.job_id}" if claim.job_id else ""


def _is_alive(claim: Claim) -> bool:
    """Whether the first rank, of this machine, is still there."""
    return claim.pid != os.getpid() and started_at(claim.pid) == claim.pid_started is not None


def _is_running(job_id: str) -> bool:
    """Whether Slurm has this job running now; no, where it does not answer: then the newest attempt counts."""
    return job_id in _running([job_id])


def _running(job_ids: Sequence[str]) -> set[str]:
    """Those that have nodes."""
    try:
        states = job_states(job_ids, patience_seconds=0.0, command_seconds=MAX_QUEUE_SECONDS)
    except RunError:
        return set()
    return {job_id for job_id, state in states.items() if state.state in ("RUNNING", "SUSPENDED")}
