"""Submitting and following: whose words explain a bad end, and what an interruption or a refusal leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from wiseft_dist.config import Resources, load_config
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.endings import failure_of
from wiseft_dist.launch.executors import SlurmExecutor, Submitted
from wiseft_dist.launch.follow import _left, _Watch, _worth_waiting_for, run_pipeline
from wiseft_dist.launch.ledger import Entry, read_ledger, record
from wiseft_dist.launch.others import refuse_unknown_jobs
from wiseft_dist.launch.processes import signals_held
from wiseft_dist.pipeline import Job, Step
from wiseft_dist.run import Run
from wiseft_dist.slurm import JobState


@pytest.fixture
def program(program):
    """At first Slurm knows of nothing."""
    program("srun", "exit 1")
    program("squeue", "exit 0")
    program("scontrol", "exit 1")
    return program


def on_slurm(run):
    return load_config(run.config_file, ["launch.executor=slurm", "launch.snapshot=false"])


def event(stage, name, **values):
    return {"stage": stage, "event": name} | values


def test_the_first_rank_to_fail_knows_why():
    events = [event("finetune", "started"), event("finetune", "failed", error="a torn shard"),
              event("finetune", "failed", error="connection closed by peer")]  # fmt: skip
    assert failure_of(events, "finetune", None)["error"] == "a torn shard"


def test_a_job_that_was_started_again_is_not_blamed_for_what_was_before():
    events = [event("finetune", "failed", error="old"), event("finetune", "started")]
    assert failure_of(events, "finetune", None) is None


def test_the_failure_of_another_job_is_not_this_ones():
    events = [event("evaluate", "failed", job="2-of-2", error="x"), event("merge", "failed", error="y")]
    assert failure_of(events, "evaluate", "1-of-2") is None


def test_a_rank_that_goes_on_to_its_next_part_does_not_hide_why_another_failed():
    events = [event("evaluate", "failed", job="1-of-2", error="a torn shard"),
              event("evaluate", "started", dataset="photo", start=0, stop=4)]  # fmt: skip
    assert failure_of(events, "evaluate", "1-of-2")["error"] == "a torn shard"


@pytest.fixture
def interruptible():
    """As at a terminal; whoever starts the tests may have switched Ctrl-C off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_during_a_submission_comes_after_the_job_is_noted(tmp_path, program, interruptible):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(
        "output: x\nmodel: {architecture: ViT-B-16}\ndata: {train: /x}\nlaunch: {snapshot: false}"
    )
    program("sbatch", "kill -INT $$ $PPID; sleep 0.2; echo Submitted batch job 41")
    with pytest.raises(KeyboardInterrupt):
        SlurmExecutor(run).submit([Job("merge", None, Resources())], after=[])
    assert read_ledger(run)["merge"].job_id == "41"


def test_what_was_held_back_ends_the_process_as_it_would_have(interruptible):
    reached = []
    with pytest.raises(KeyboardInterrupt), signals_held():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end of the block")
    assert reached == ["the end of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_job_that_ends_while_slurm_is_asked_is_not_submitted_again(copied, tmp_path, program):
    config = on_slurm(copied)
    record(copied, [Entry("report", "7", str(copied.jobs / "report"), "slurm", 1.0)])
    copied.report.rename(tmp_path / "stash")
    program("squeue", f'[ ! -e {tmp_path}/stash ] || mv {tmp_path}/stash {copied.report}; [[ "$*" != *Array* ]] || '
            'echo "7|COMPLETED|None|0|0|node1|1795476071|1795476072|UNLIMITED|"')  # fmt: skip
    program("sbatch", f"touch {tmp_path}/submitted; echo Submitted batch job 8")
    run_pipeline(config, copied)
    assert copied.report.is_dir() and not (tmp_path / "submitted").exists()


def test_a_job_is_said_to_run_once_for_each_start(tmp_path, capsys, program):
    program("scontrol", "echo AccountingStorageType = accounting_storage/none")
    program("sinfo", "true")
    run = Run(tmp_path / "run")
    watch = _Watch(None, run, SlurmExecutor(run))
    item = Submitted(Job("finetune", None, Resources()), SimpleNamespace(job_id="7"))
    watch.add([item])
    for state, restarts, nodes in (
        ("PENDING", 0, ""),
        ("RUNNING", 0, "node1"),
        ("COMPLETING", 1, "node1"),
        ("PENDING", 1, ""),
        ("RUNNING", 1, "node2"),
        ("COMPLETING", 1, "node2"),
    ):
        found = JobState("7", state, restarts=restarts, nodes=nodes)
        watch._tell_requeues({"7": found})
        watch._tell_changes(item, found)
    assert capsys.readouterr().err.splitlines() == [
        "finetune: runs on node1 (job 7)",
        "finetune: preempted or requeued, in the queue again",
        "finetune: runs on node2 (job 7)",
    ]


def test_a_result_that_shows_late_is_waited_for_while_other_jobs_build_on_it(copied, tmp_path):
    states = {"report": JobState("7", "COMPLETED", ended=time.time()), "merge": JobState("8", "PENDING")}
    copied.report.rename(tmp_path / "stash")
    timer = threading.Timer(1.0, lambda: (tmp_path / "stash").rename(copied.report))
    timer.start()
    assert _left(on_slurm(copied), copied, states) == []
    timer.join()


def test_a_refused_step_tells_what_stays_in_the_queue(copied, program, tmp_path):
    shutil.rmtree(copied.path / "evaluate", ignore_errors=True)
    shutil.rmtree(copied.merged)
    shutil.rmtree(copied.report)
    once = f"[ ! -e {tmp_path}/once ] && touch {tmp_path}/once && echo Submitted batch job 41 && exit 0"
    program("sbatch", f"{once}; echo 'Invalid account' >&2; exit 1")
    program("scontrol", "echo 'MaxArraySize = 1001'")
    said = rf"Invalid account\nIn the queue stay: merge \(41\)\..*`wiseft cancel {copied.path}` takes them out"
    with pytest.raises(RunError, match=said):
        run_pipeline(on_slurm(copied), copied)


def test_jobs_that_nobody_could_note_are_not_doubled(tmp_path, program):
    run = Run(tmp_path / "run")
    record(run, [Entry("merge", "7", str(run.jobs / "merge"), "slurm", 1.0)])
    of_another = f"9|{tmp_path}/other/jobs/merge/.submission_file_b.sh"
    program("squeue", f"echo '7|{run.jobs}/merge/.submission_file_a.sh'; echo '{of_another}'; echo '5|/home/me/x.sh'")
    refuse_unknown_jobs(run)
    program("squeue", f"echo '8|{run.jobs}/merge/.submission_file_c.sh'")
    with pytest.raises(UserError, match=r"\(8\); nothing was started. `scancel 8`"):
        refuse_unknown_jobs(run)


def test_a_job_that_reads_what_must_be_made_again_is_ended_and_one_that_waits_for_a_job_under_way_is_not(
    program, tmp_path, capsys
):
    program("scancel", f'echo "$@" >> {tmp_path}/ended')
    finetune, merge, *parts = (
        Job(stage, part, Resources())
        for stage, part in (("finetune", None), ("merge", None), ("evaluate", "1-of-2"), ("evaluate", "2-of-2"))
    )
    steps = [Step("finetune", (finetune,)), Step("merge", (merge,)), Step("evaluate", tuple(parts))]
    later = {"merge": JobState("8", "PENDING"), "evaluate/2-of-2": JobState("9_1", "RUNNING")}
    assert _worth_waiting_for(steps[2:], later) == {"merge": "8", "evaluate/2-of-2": "9_1"}
    assert not (tmp_path / "ended").exists()
    assert _worth_waiting_for(steps, later) == {}
    assert "evaluate/2-of-2: ended (job 9_1), because what it reads must be made again" in capsys.readouterr().err
    assert {"8", "9_[1]"} <= set((tmp_path / "ended").read_text().split())
