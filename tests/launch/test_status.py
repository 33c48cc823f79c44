"""What `wiseft status` says about runs in every state, from their directories alone."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from wiseft_dist.config import dump_config, load_config
from wiseft_dist.errors import UserError
from wiseft_dist.launch.cancel import under_way
from wiseft_dist.launch.ledger import Entry, log_file, record
from wiseft_dist.launch.lock import holder, only_one
from wiseft_dist.launch.logs import choose_job
from wiseft_dist.launch.status import run_status
from wiseft_dist.launch.status_records import RunStatus
from wiseft_dist.launch.status_table import status_text
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event, read_events, read_events_from

WIDTH = 100


def states(status: RunStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in status.stages}


def shown(run: Run) -> str:
    text = status_text(run_status(run))
    assert all(len(line) <= WIDTH or str(run.path) in line for line in text.splitlines())
    return text


def unfinished(run: Run) -> Run:
    """As if its evaluation had never been: three parts of nine are there."""
    shutil.rmtree(run.report)
    for cell in list(run.cells.glob("sketch/*")) + list(run.cells.glob("clipart/*")):
        shutil.rmtree(cell)
    (run.jobs / "submitted.json").unlink()
    return run


def test_a_finished_run_has_nothing_left_to_do(finished):
    status = run_status(finished.run)
    assert status.state == "finished"
    assert states(status) == dict.fromkeys(("finetune", "merge", "evaluate", "report"), "finished")
    assert (status.controller, status.error, status.problems) == (None, None, ())
    assert status.checkpoint is not None and status.checkpoint.step == 7
    assert status.training is not None and status.training.step == 7 and status.training.samples_per_second > 0
    assert f"open {finished.run.path}/report/index.html" in " ".join(shown(finished.run).split())


def test_the_document_for_programs_is_json_with_every_job(finished):
    document = json.loads(json.dumps(asdict(run_status(finished.run))))
    assert document["state"] == "finished" and document["executor"] == "local"
    [evaluation] = next(stage for stage in document["stages"] if stage["stage"] == "evaluate")["jobs"]
    assert evaluation["name"] == "evaluate/1-of-1" and evaluation["job_id"].isdigit()
    assert set(document) == {
        *("run", "state", "executor", "stages", "training", "checkpoint", "error", "controller", "problems"),
        *("next", "time"),
    }


def test_looking_at_a_run_writes_nothing_and_needs_no_torch(finished):
    program = (
        "import sys; from wiseft_dist.cli import main; sys.argv = ['wiseft', 'status', sys.argv[1], '--json']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'submitit', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    before = {file: file.stat().st_mtime_ns for file in finished.run.path.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(finished.run.path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    assert {file: file.stat().st_mtime_ns for file in finished.run.path.rglob("*")} == before


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        run_status(Run(tmp_path))


def test_a_run_that_has_only_its_settings_says_so_and_how_to_go_on(copied):
    for path in copied.path.iterdir():
        if path != copied.config_file:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    status = run_status(copied)
    assert status.state == "stopped" and "finetune" in states(status)
    assert set(states(status).values()) == {"not_started"}
    assert "not indexed yet" in status.problems[0]
    assert f"`wiseft run {copied.path}/config.yaml` goes on" in status.next


def test_a_half_evaluated_run_tells_how_much_is_there(copied):
    status = run_status(unfinished(copied))
    assert states(status) == {
        "finetune": "finished",
        "merge": "finished",
        "evaluate": "not_started",
        "report": "not_started",
    }
    evaluation = status.stages[2].pace
    assert evaluation is not None
    # 11 of photo and the held-out 12 of 40; without 13 of sketch and 7 of clipart.
    assert (evaluation.done, evaluation.total, evaluation.unit) == (23, 43, "images")
    assert status.state == "stopped"
    assert "23 of 43 images" in shown(copied)


def failed_merge(run: Run, error: str = "the disk is full") -> Entry:
    """The newest job of a run that lost its ensembles failed."""
    shutil.rmtree(run.merged)
    shutil.rmtree(run.report)
    entry = Entry("merge", "999999999", str(run.jobs / "merge"), "local", time.time())
    record(run, [entry])
    append_event(run.events_file, stage="merge", event="failed", job=None, kind="OSError", error=error)
    log_file(entry, 0).write_text("\n".join(f"line {n}" for n in range(30)) + "\nOSError: \x1b[31mNo space\n")
    return entry


def test_a_failed_job_is_told_in_its_words_with_the_end_of_its_log(copied):
    entry = failed_merge(copied)
    status = run_status(copied)
    assert status.state == "failed" and states(status)["merge"] == "failed"
    assert status.error is not None
    assert (status.error.job, status.error.text) == ("merge", "the disk is full")
    assert status.error.log_tail[-2:] == ("line 29", "OSError: \x1b[31mNo space")
    text = shown(copied)
    assert "the disk is full" in text and f"{log_file(entry, 0)}" in text
    assert "\\x1b[31mNo space" in text and "\x1b" not in text
    assert "Mend why merge failed" in text


def test_a_job_that_was_killed_without_a_word_is_said_to_be_gone(copied):
    failed_merge(copied)
    events = copied.events_file.read_text().splitlines()
    copied.events_file.write_text("\n".join(events[:-1]) + "\n")
    [merge] = run_status(copied).stages[1].jobs
    assert merge.state == "forgotten"
    assert "run again to go on" in merge.explanation


def test_a_slurm_that_cannot_be_asked_leaves_the_rest_of_the_screen(copied, monkeypatch, tmp_path):
    failed_merge(copied)
    record(copied, [Entry("merge", "17", str(copied.jobs / "merge"), "slurm", time.time())])
    monkeypatch.setenv("PATH", str(tmp_path))  # as on a machine outside the cluster
    status = run_status(copied)
    assert status.state == "unknown" and states(status)["merge"] == "unknown"
    assert "squeue is not installed here" in status.problems[0]
    assert states(status)["finetune"] == "finished"
    assert "Look again where Slurm answers" in shown(copied)


def test_the_wiseft_run_that_is_at_work_is_named(copied):
    unfinished(copied)
    with only_one(copied):
        found = holder(copied)
        assert found is not None and (found.host, found.pid) == (socket.gethostname(), os.getpid())
        assert f"`wiseft run` is process {os.getpid()}" in shown(copied)
    assert holder(copied) is None


def test_a_wiseft_run_that_was_killed_is_not_taken_for_one_at_work(copied):
    copied.lock_file.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    assert holder(copied) is None
    with copied.lock_file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert holder(copied) is not None


def test_training_under_way_tells_step_loss_rate_and_what_holds_it_up(copied):
    """As the events of a session that goes on: 100 steps in 50 seconds, 300 of 400 done."""
    shutil.rmtree(copied.checkpoints)
    now = time.time()
    copied.events_file.write_text("")
    append_event(copied.events_file, stage="finetune", event="started", step=190, total_steps=400, world_size=2)
    for step in (200, 300):
        values = {"loss": 0.25, "samples_per_second": 64.0, "data_wait_percent": 35.0, "eta_seconds": 1e9}
        at = {"step": step, "time": now - (300 - step) / 2}
        append_event(copied.events_file, stage="finetune", event="metrics", **at, **values)
    append_event(copied.events_file, stage="finetune", event="metrics", step=300, **{"id_val/top1": 0.75})
    child = subprocess.Popen([sys.executable, "-c", "input()", str(copied.jobs / "finetune")], stdin=subprocess.PIPE)
    try:
        record(copied, [Entry("finetune", str(child.pid), str(copied.jobs / "finetune"), "local", now)])
        status = run_status(copied)
        seconds = time.time() - now
        text = shown(copied)
    finally:
        child.kill()
        child.wait()
    assert status.state == "running" and states(status)["finetune"] == "running"
    pace = status.stages[0].pace
    assert pace is not None and (pace.done, pace.total) == (300, 400)
    assert 49 - seconds <= pace.seconds_left <= 51
    for words in ("step 300 of 400", "loss 0.25", "ID-val top-1 75.0 %", "64 samples/s", "held up by data 35 %"):
        assert words in text


def test_many_jobs_are_counted_and_only_the_unusual_ones_are_listed(copied):
    config = load_config(copied.config_file, ["evaluate.job_images=1"])
    copied.config_file.write_text(dump_config(config))
    unfinished(copied)
    evaluation = run_status(copied).stages[2]
    assert len(evaluation.jobs) == 43  # one for each image; those without a part of a dataset are done
    failed = [job.name for job in evaluation.jobs if job.state == "not_started"][-1]
    append_event(
        copied.events_file,
        stage="evaluate",
        event="failed",
        job=failed.split("/")[1],
        kind="RunError",
        error="a torn shard",
    )
    text = shown(copied)
    assert f"{failed}: failed" in text and "1 failed" in text
    assert sum("evaluate/" in line for line in text.splitlines()) <= 4


def test_the_newest_of_a_million_events_are_read_without_the_others(tmp_path):
    run = Run(tmp_path)
    line = json.dumps({"time": 1.0, "stage": "finetune", "event": "metrics", "step": 1, "loss": 0.5})
    run.events_file.write_text(f"{line}\n" * 1_000_000)
    append_event(run.events_file, stage="merge", event="started")
    recent = read_events_from(run, -(2**20))
    assert recent[-1]["stage"] == "merge" and 10_000 < len(recent) < 15_000


def test_events_are_read_from_the_beginning_of_a_line_on(tmp_path):
    run = Run(tmp_path)
    for number in range(3):
        append_event(run.events_file, number=number)
    first, second, third = (event["number"] for event in read_events(run))
    length = len(run.events_file.read_bytes().splitlines(keepends=True)[0])
    assert [event["number"] for event in read_events_from(run, 0)] == [first, second, third]
    assert [event["number"] for event in read_events_from(run, length)] == [second, third]
    assert [event["number"] for event in read_events_from(run, length + 1)] == [third]
    assert read_events_from(run, 10**9) == []


def queue(tmp_path, monkeypatch, answer: str) -> None:
    """A `squeue` that gives this answer, and no other command of Slurm."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf '%s\\n' '{answer}'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_a_job_that_slurm_calls_failed_is_never_said_not_to_have_started(copied, tmp_path, monkeypatch):
    """Submitit leaves a result file of a job that raised, too."""
    entry = failed_merge(copied)
    events = copied.events_file.read_text().splitlines()
    copied.events_file.write_text("\n".join(events[:-1]) + "\n")
    record(copied, [Entry("merge", "17", str(copied.jobs / "merge"), "slurm", entry.submitted)])
    (copied.jobs / "merge" / "17_0_result.pkl").touch()
    queue(tmp_path, monkeypatch, "17|FAILED|NonZeroExitCode|256|0|node1|1795476071|1795476071|10:00|")
    status = run_status(copied)
    assert (status.state, states(status)["merge"]) == ("failed", "failed")
    assert status.stages[1].jobs[0].explanation == "merge (job 17) failed (exit code 1)."


def test_a_forgotten_job_is_what_its_log_or_whoever_followed_it_says(copied, tmp_path, monkeypatch):
    entry = failed_merge(copied)
    events = copied.events_file.read_text().splitlines()
    copied.events_file.write_text("\n".join(events[:-1]) + "\n")
    entry = Entry("merge", "17", str(copied.jobs / "merge"), "slurm", entry.submitted)
    record(copied, [entry])
    queue(tmp_path, monkeypatch, "")
    log_file(entry, 0).write_text("submitit ERROR - Submitted job triggered an exception\nImportError\n")
    assert states(run_status(copied))["merge"] == "failed"
    append_event(copied.events_file, stage="merge", event="ended", job=None, job_id="17", outcome="node_failed")
    assert states(run_status(copied))["merge"] == "node_failed"


def test_a_stage_that_sbatch_started_shows_its_job(copied, tmp_path, monkeypatch):
    failed_merge(copied)
    claim = {"number": 1, "attempt": "slurm-19", "job_id": "19", "restart": 0, "host": "node7", "machine": "elsewhere"}
    claim |= {"pid": 1, "pid_started": 1, "since": time.time() + 60, "is_over": False}
    (copied.jobs / "attempts").mkdir(exist_ok=True)
    (copied.jobs / "attempts" / "merge.json").write_text(json.dumps(claim))
    queue(tmp_path, monkeypatch, "19|RUNNING|None|0|0|node7|1795476071|NONE|10:00|")
    status = run_status(copied)
    [merge] = status.stages[1].jobs
    assert (status.state, merge.state, merge.job_id, merge.nodes) == ("running", "running", "19", "node7")
    assert under_way(copied).names == ["merge (job 19)"]
    assert choose_job(copied, "merge").job_id == "19"


def test_a_lock_of_another_machine_does_not_make_a_stopped_slurm_run_a_running_one(copied):
    unfinished(copied)
    copied.config_file.write_text(dump_config(load_config(copied.config_file, ["launch.executor=slurm"])))
    copied.lock_file.write_text(json.dumps({"host": "login9", "pid": 7}))
    status = run_status(copied)
    assert status.state == "stopped"
    assert status.next.startswith("Nothing is queued. `wiseft run` (process 7 on login9) may be at work, or was killed")
