"""`wiseft cancel` on this machine: everything of the run ends, after a checkpoint, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
from tiny_run import command, wiseft
from waiting import wait_until

from wiseft_dist import status_command
from wiseft_dist.commits import read_commit
from wiseft_dist.errors import UserError
from wiseft_dist.launch.ledger import Entry, record
from wiseft_dist.launch.lock import holder
from wiseft_dist.run import Run, newest_checkpoint
from wiseft_dist.tracking import read_events

PATIENCE_SECONDS = 240
LONG = ("finetune.epochs=100000", "finetune.log_every=1", "finetune.checkpoint.every_minutes=null")


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_a_run_in_the_background_saves_ends_with_all_its_processes_and_goes_on_later(world, tmp_path):
    run = Run(tmp_path / "run")
    begun = wiseft("run", world.config, f"output={run.path}", *LONG, "--detach")
    assert begun.returncode == 0, begun.stderr
    wait_until(lambda: [event for event in read_events(run) if event["event"] == "metrics"])
    at_work = holder(run)
    assert at_work is not None
    processes = family(at_work.pid)
    second = wiseft("run", run.config_file, "--detach")
    assert "another `wiseft run` is at work on this run; nothing was started." in second.stderr
    assert "process" in wiseft("cancel", run.path).stderr  # nobody is there to say yes
    assert psutil.pid_exists(at_work.pid)

    done = wiseft("cancel", run.path, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Cancelled: finetune (process ")
    assert not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert holder(run) is None
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    steps = [event["step"] for event in read_events(run) if event["event"] == "metrics"]
    assert read_commit(checkpoint)["step"] >= max(steps) - 1  # the ranks agree on a signal one step later

    again = wiseft("cancel", run.path, "--yes")
    assert (again.returncode, again.stdout) == (0, f"{run.path}: nothing to cancel.\n")
    shown = wiseft("status", run.path).stdout
    assert "finetune    cancelled" in shown and "goes on from what is committed" in " ".join(shown.split())


def test_a_run_without_anything_under_way_is_left_as_it_is(copied):
    done = wiseft("cancel", copied.path, "evaluate")
    assert (done.returncode, done.stdout) == (0, f"{copied.path}: nothing to cancel of evaluate.\n")
    mistyped = wiseft("cancel", copied.path, "finetun", "--yes")
    assert (mistyped.returncode, mistyped.stdout) == (2, "")
    assert "finetun is neither a stage (finetune, merge, evaluate, report) nor a job" in mistyped.stderr


def test_a_process_that_only_has_the_id_of_a_job_of_before_is_not_touched(copied):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        record(copied, [Entry("merge", str(stranger.pid), str(copied.jobs / "merge"), "local", time.time())])
        assert "nothing to cancel" in wiseft("cancel", copied.path, "--yes").stdout
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


@pytest.mark.parametrize("command", [status_command.cancel, status_command.logs, status_command.status])
def test_a_directory_that_is_no_run_is_refused(tmp_path, command):
    with pytest.raises(
        UserError, match=r"is not a run directory: it has no config\.yaml\. Start one with `wiseft run`"
    ):
        command(tmp_path)


@pytest.mark.matrix
def test_two_launches_at_the_same_moment_are_one(copied):
    """Whoever comes second says one sentence, changes nothing, and the ledger has each job once."""
    for file in copied.report.iterdir():
        file.unlink()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command("run", copied.config_file), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env=environment)
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in both]
    refused = [text for process, text in zip(both, said, strict=True) if process.returncode == 2]
    worked = [text for process, text in zip(both, said, strict=True) if process.returncode == 0]
    assert len(worked) >= 1, said
    if refused:  # else the first was done before the second had begun
        assert refused == [
            f"wiseft: {copied.path}: another `wiseft run` is at work on this run; nothing was started.\n"
        ]
    starts = [event for event in read_events(copied) if event["stage"] == "report" and event["event"] == "started"]
    assert len(starts) == 2  # one of them when the run was made
