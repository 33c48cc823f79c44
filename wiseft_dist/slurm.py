"""Asking Slurm, and telling it to cancel: every call of squeue, sacct, scontrol and scancel about jobs.

One call answers for any number of jobs. Slurm forgets ended jobs (``MinJobAge``, five minutes by default); then only
its accounting knows them, where there is any. Formats: the manual pages squeue(1) and sacct(1) of Slurm 22.05.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wiseft_dist.errors import RunError

COMMAND_SECONDS = 30.0
"""Longest time for one answer: without a controller, Slurm's commands try for nine seconds, without a file for 60."""
PATIENCE_SECONDS = 15.0
"""How long a busy controller is asked again."""
MAX_NAMED = 500
"""Job ids on one command line."""
ENDED = frozenset(
    [
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "PREEMPTED",
        "BOOT_FAIL",
        "DEADLINE",
        "REVOKED",
    ]
)
"""States of a job that will not run again under its id. One that is requeued shows as REQUEUED or COMPLETING first."""
NOT_STARTED = frozenset(["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
QUEUE_FIELDS = [
    "JobArrayID",
    "State",
    "Reason",
    "exit_code",
    "RestartCnt",
    "NodeList",
    "StartTime",
    "EndTime",
    "TimeLimit",
]
ACCOUNTING_FIELDS = ["JobID", "State", "ExitCode", "NodeList", "Start", "End", "Timelimit"]


@dataclass(frozen=True)
class JobState:
    """What Slurm says about a job."""

    job_id: str
    """``123``, ``123_4`` for a task of an array."""
    state: str
    """Slurm's word: ``PENDING``, ``RUNNING``, ``TIMEOUT``."""
    reason: str = ""
    """Why it waits or ended; of a cancelled job, by whom, where accounting tells."""
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0
    """How often it was requeued."""
    nodes: str = ""
    """As Slurm writes them: ``node[11-14]``."""
    started: float | None = None
    """Seconds since 1970."""
    ended: float | None = None
    time_limit_minutes: float | None = None
    last_ending: str = ""
    """Slurm's word for the end of the attempt before this one: ``PREEMPTED``, ``NODE_FAIL``; only accounting tells."""

    @property
    def is_active(self) -> bool:
        """Whether it waits, runs, or is being ended at this moment."""
        return self.state not in ENDED


def job_states(
    job_ids: Sequence[str], *, patience_seconds: float = PATIENCE_SECONDS, command_seconds: float = COMMAND_SECONDS
) -> dict[str, JobState]:
    """The state of those jobs that Slurm still knows, by their ids.

    A task of an array that was cancelled before it started has no record of its own, and is left out as long as others
    of the array wait.

    Args:
        job_ids: ``123`` or ``123_4``.
        patience_seconds: How long a controller that does not answer is asked again.
        command_seconds: How long one answer may take.

    Raises:
        RunError: if squeue does not answer.
    """
    if not job_ids:
        return {}
    known: dict[str, JobState] = {}
    for bases in _batches(job_ids):
        # Slurm takes a single unknown job for a mistake, and says nothing of unknown ones among several.
        named = ",".join([*bases, bases[0]])
        fields = ",".join(f"{name}:|" for name in QUEUE_FIELDS)
        command = ["squeue", "--noheader", "--array", "--states=all", "--Format", fields, "--jobs", named]
        known |= parse_queue(ask(command, patience_seconds=patience_seconds, command_seconds=command_seconds))
    states = {job_id: state for job_id in job_ids if (state := _lookup(known, job_id)) is not None}
    unclear = [job_id for job_id in job_ids if job_id not in states or states[job_id].state == "FAILED"]
    return states | _accounted(unclear, command_seconds) if unclear else states


def active_ids(job_ids: Sequence[str], *, patience_seconds: float = PATIENCE_SECONDS) -> set[str]:
    """Which Slurm jobs are waiting or running; ``123_4`` names a task of an array.

    Raises:
        RunError: if squeue does not answer.
    """
    return {
        job_id for job_id, state in job_states(job_ids, patience_seconds=patience_seconds).items() if state.is_active
    }


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Tell Slurm to end jobs, those of an array together. Ended and unknown ones are no mistake.

    Raises:
        RunError: if scancel fails.
    """
    tasks: dict[str, list[str]] = defaultdict(list)
    for base, _, task in (job_id.partition("_") for job_id in job_ids):
        tasks[base].append(task)
    for bases in _batches(job_ids):
        named = [f"{base}_[{','.join(tasks[base])}]" if all(tasks[base]) else base for base in bases]
        ask(["scancel", "--quiet", *named])


def last_endings(job_ids: Sequence[str]) -> dict[str, str]:
    """Slurm's word for how the newest attempt of each job ended that did: ``PREEMPTED``, ``NODE_FAIL``, ``REQUEUED``.

    Only accounting tells; jobs that it does not know, or does not know yet, are left out.
    """
    states = _accounted(job_ids, COMMAND_SECONDS).values()
    endings = {state.job_id: state.last_ending if state.is_active else state.state for state in states}
    return {job_id: ending for job_id, ending in endings.items() if ending}


def silent_nodes(nodes: str) -> list[str]:
    """Those of some nodes, which are given as Slurm writes them, that do not answer the controller; sorted.

    Raises:
        RunError: if sinfo does not answer.
    """
    command = ["sinfo", "--noheader", "--Node", "--dead", f"--nodes={nodes}", "--format=%N"]
    return sorted(set(ask(command, patience_seconds=0.0).split()))


def has_accounting(*, patience_seconds: float = PATIENCE_SECONDS, command_seconds: float = COMMAND_SECONDS) -> bool:
    """Whether Slurm keeps a record of ended jobs, which sacct reads.

    Raises:
        RunError: if scontrol does not answer.
    """
    settings = cluster_settings(patience_seconds=patience_seconds, command_seconds=command_seconds)
    kind = settings.get("AccountingStorageType", "").removeprefix("accounting_storage/")
    return kind not in ("", "none", "(null)")


def num_gpus(resources: str) -> int:
    """Of generic resources as Slurm writes them: ``gpu:a100:4(S:0-1),gpu:2,nic:1`` has six, ``gpu:1g.10gb:7`` seven."""
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", resources))


def max_array_size() -> int:
    """The largest index of an array's task, and one.

    Raises:
        RunError: if scontrol does not answer.
    """
    return int(cluster_settings().get("MaxArraySize", "1001"))


def cluster_settings(
    *, patience_seconds: float = PATIENCE_SECONDS, command_seconds: float = COMMAND_SECONDS
) -> dict[str, str]:
    """The controller's configuration, as ``scontrol show config`` writes it.

    Raises:
        RunError: if scontrol does not answer.
    """
    command = ["scontrol", "show", "config"]
    text = ask(command, patience_seconds=patience_seconds, command_seconds=command_seconds)
    lines = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def ask(
    command: Sequence[str], *, patience_seconds: float = PATIENCE_SECONDS, command_seconds: float = COMMAND_SECONDS
) -> str:
    """The answer of one of Slurm's commands; a controller that is busy or restarts is asked again.

    Raises:
        RunError: if it does not answer.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        reason = ""
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=command_seconds, env=_environment()
            )
        except FileNotFoundError as error:
            raise RunError(f"{command[0]} is not installed here: ask on a machine of the cluster.") from error
        except subprocess.TimeoutExpired:
            reason = f"nothing within {command_seconds:.0f} s"
        else:
            if answer.returncode == 0:
                return answer.stdout
            reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        if time.monotonic() >= deadline:
            raise RunError(f"{command[0]} does not answer: {reason}")
        time.sleep(1.0)


def parse_queue(text: str) -> dict[str, JobState]:
    """The jobs of squeue's answer; times are in seconds since 1970."""
    rows = (line.strip().rstrip("|").split("|") for line in text.splitlines())
    states = (_queued(dict(zip(QUEUE_FIELDS, row, strict=True))) for row in rows if len(row) == len(QUEUE_FIELDS))
    return {state.job_id: state for state in states}


def parse_accounting(text: str) -> dict[str, JobState]:
    """The jobs of sacct's answer, with a line a step and, for each time that a job was requeued, lines of its own.

    The newest counts. A job one of whose steps ran out of memory did, also where Slurm calls the job itself failed.
    """
    newest: dict[str, JobState] = {}
    for row in (line.split("|") for line in text.splitlines()):
        if len(row) != len(ACCOUNTING_FIELDS):
            continue
        fields = dict(zip(ACCOUNTING_FIELDS, row, strict=True))
        job_id, is_step, _ = fields["JobID"].partition(".")
        before = newest.get(job_id)
        if not is_step:
            newest[job_id] = _accounted_job(fields)
            if before is not None:
                newest[job_id] = replace(newest[job_id], restarts=before.restarts + 1, last_ending=before.state)
        elif before is not None and before.state == "FAILED" and fields["State"].startswith("OUT_OF_ME"):
            newest[job_id] = replace(before, state="OUT_OF_MEMORY")
    return newest


def parse_minutes(text: str) -> float | None:
    """A limit as Slurm writes it, ``days-hours:minutes:seconds`` with the larger ones left out; None for no limit."""
    days, has_days, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (*parts, *([days] if has_days else []))) or not 2 <= len(parts) <= 3:
        return None
    hours, minutes, seconds = ([0] * (3 - len(parts))) + [int(part) for part in parts]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _queued(fields: Mapping[str, str]) -> JobState:
    state = _plain(fields["State"])
    code, signal = _exit(fields["exit_code"]) if state in ENDED else (None, None)
    return JobState(
        job_id=fields["JobArrayID"],
        state=state,
        reason="" if fields["Reason"] == "None" else fields["Reason"],
        exit_code=code,
        signal=signal,
        restarts=int(fields["RestartCnt"]) if fields["RestartCnt"].isdigit() else 0,
        nodes=fields["NodeList"],
        # Of a job that waits, Slurm gives the expected start, and of one that runs the time when its limit ends it.
        started=None if state in NOT_STARTED else _seconds(fields["StartTime"]),
        ended=_seconds(fields["EndTime"]) if state in ENDED else None,
        time_limit_minutes=parse_minutes(fields["TimeLimit"]),
    )


def _accounted_job(fields: Mapping[str, str]) -> JobState:
    state = _plain(fields["State"])
    code, signal = _exit(fields["ExitCode"]) if state in ENDED else (None, None)
    _, is_by, user = fields["State"].partition(" by ")
    return JobState(
        job_id=fields["JobID"],
        state=state,
        reason=f"by {_user_name(user)}" if is_by else "",
        exit_code=code,
        signal=signal,
        nodes="" if fields["NodeList"] == "None assigned" else fields["NodeList"],
        started=_seconds(fields["Start"]),
        ended=_seconds(fields["End"]) if state in ENDED else None,
        time_limit_minutes=parse_minutes(fields["Timelimit"]),
    )


def _plain(state: str) -> str:
    """``CANCELLED by 0`` and ``CANCELLED+`` without what Slurm adds to the word."""
    return state.split()[0].rstrip("+") if state.strip() else ""


def _exit(text: str) -> tuple[int | None, int | None]:
    """Exit code and signal: sacct writes ``1:9``, squeue the status of wait(2) as one number."""
    code, colon, signal = text.partition(":")
    if not code.isdigit() or (colon and not signal.isdigit()):
        return None, None
    number = int(code)
    code_and_signal = (number, int(signal)) if colon else (number >> 8, number & 127)
    return code_and_signal[0], code_and_signal[1] or None


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() and int(text) > 0 else None


def _user_name(text: str) -> str:
    import pwd

    try:
        return pwd.getpwuid(int(text)).pw_name
    except (KeyError, ValueError):
        return f"user {text}"


def _lookup(known: Mapping[str, JobState], job_id: str) -> JobState | None:
    """A job's state; the tasks of an array that never started have one record, once all of them are cancelled."""
    if job_id in known:
        return known[job_id]
    array = known.get(job_id.split("_")[0])
    return replace(array, job_id=job_id) if array is not None and array.state in ENDED else None


def _accounted(job_ids: Sequence[str], command_seconds: float) -> dict[str, JobState]:
    """What accounting knows; nothing where there is none, or where it does not answer at once."""
    try:
        if not has_accounting(patience_seconds=0.0, command_seconds=command_seconds):
            return {}
        known: dict[str, JobState] = {}
        for bases in _batches(job_ids):
            options = ["--parsable2", "--noheader", "--duplicates", "--format", ",".join(ACCOUNTING_FIELDS)]
            command = ["sacct", *options, "--jobs", ",".join(bases)]
            known |= parse_accounting(ask(command, patience_seconds=0.0, command_seconds=command_seconds))
    except RunError:
        return {}  # squeue has answered, which is what matters
    return {job_id: known[job_id] for job_id in job_ids if job_id in known}


def _batches(job_ids: Iterable[str]) -> list[list[str]]:
    """The ids without tasks, each once, in pieces that a command line can hold."""
    bases = list(dict.fromkeys(job_id.split("_")[0] for job_id in job_ids))
    return [bases[start : start + MAX_NAMED] for start in range(0, len(bases), MAX_NAMED)]


def _environment() -> dict[str, str]:
    """Ours, without people's own settings for these commands, and with times as seconds since 1970."""
    theirs = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | {
        "SLURM_TIME_FORMAT": "%s"
    }
