"""What is done where Slurm, or its accounting, does not answer: stand-ins for its commands say what it would."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wiseft_dist import status_command
from wiseft_dist.launch.ledger import Entry, log_file, record
from wiseft_dist.launch.logs import follow
from wiseft_dist.launch.outcomes import outcome_of
from wiseft_dist.launch.sweep.directory import Member, Sweep
from wiseft_dist.run import Run
from wiseft_dist.slurm import job_states

Program = Callable[[str, str], None]


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-05-31T10:00:00 DUE TO TIME LIMIT ***", "timed_out"),
        ("*** JOB 7 ON n1 CANCELLED AT 2026-05-31T10:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("*** JOB 7 ON n1 CANCELLED AT X DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***", "node_failed"),
        ("error: Detected 1 oom_kill event in StepId=1.0", "out_of_memory"),
        ("Submitted job triggered an exception", "failed"),
        ("step 7 of 9", "forgotten"),
    ],
)
def test_a_job_that_slurm_has_forgotten_is_known_by_the_end_of_its_log(words: str, outcome: str) -> None:
    assert outcome_of(None, has_result=False, failure=None, log=f"one\n{words}\n") == outcome


def test_accounting_that_is_away_is_not_waited_for(program: Program) -> None:
    program("squeue", "")
    program("scontrol", "echo 'AccountingStorageType = accounting_storage/slurmdbd'")
    program("sacct", "exit 1")
    assert job_states(["17"], patience_seconds=0) == {}


def test_a_log_is_followed_on_while_slurm_is_away(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wiseft_dist.launch.logs.STATE_SECONDS", 0.1)
    monkeypatch.setattr("wiseft_dist.launch.logs.POLL_SECONDS", 0.05)
    run = Run(tmp_path / "run")
    (run.jobs / "merge").mkdir(parents=True)
    entry = Entry("merge", "17", str(run.jobs / "merge"), "slurm", time.time())
    record(run, [entry])
    log_file(entry, 0).write_text("old\n")
    answer = "17|COMPLETED|None|0|0|node1|1795476071|1795476071|10:00|"
    program("squeue", f"test -e {tmp_path}/back || {{ echo away >&2; exit 1; }}\necho '{answer}'")
    lines: list[str] = []
    thread = threading.Thread(target=follow, args=(run, entry, 0, 1, lines.append), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while len(lines) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    (tmp_path / "back").touch()
    thread.join(60)
    assert not thread.is_alive()
    away = "-- squeue does not answer: away; the log is followed on --"
    assert sorted(lines[:2]) == sorted([away, "old"])
    assert re.fullmatch(r"-- Slurm answers again, after \d+ s --", *lines[2:])


def test_a_sweep_is_cancelled_by_one_command(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path / "sweep", ("a",), (Member("a=1", {"a": 1}), Member("a=2", {"a": 2})), "none", False)
    sweep.write()
    for number, name in enumerate(("a=1", "a=2")):
        sweep.run(name).jobs.mkdir(parents=True)
        record(sweep.run(name), [Entry("merge", f"7_{number}", str(sweep.jobs), "slurm", 1.0)])
    rows = ("7_0|RUNNING|None|0|0|n|1|NONE|10:00|", "7_1|PENDING|Priority|0|0||N/A|N/A|10:00|")
    program("squeue", f"test -e {tmp_path}/cancelled && exit 0\nprintf '%s\\n' '{rows[0]}' '{rows[1]}'")
    program("scontrol", "echo")
    program("scancel", f'echo "$@" >> {tmp_path}/cancelled')
    status_command.cancel(sweep.folder, yes=True)
    assert (tmp_path / "cancelled").read_text() == "--quiet 7_[0,1]\n"
    assert "Cancelled: a=1 (1 job), a=2 (1 job)" in capsys.readouterr().out
