"""What a launch does to a run before its jobs: nothing that a mistake or another launch could suffer from."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_run import wiseft

from wiseft_dist.claims import Claim, at_work, claim_file
from wiseft_dist.code_identity import code_identity
from wiseft_dist.config import RunConfig, load_config
from wiseft_dist.errors import UserError
from wiseft_dist.launch.ledger import Entry, log_file, read_ledger, record
from wiseft_dist.launch.lock import only_one
from wiseft_dist.launch.others import refuse_beside_others
from wiseft_dist.launch.start import prepare, refuse_to_change_under_jobs, start, warn_of
from wiseft_dist.ranks import machine, started_at
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event, read_events

PARTITIONS = """echo 'PartitionName=dev Default=YES MaxTime=UNLIMITED State=UP TotalNodes=4'"""
AT_WORK = "another `wiseft run` is at work on this run; nothing was started"


def content(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def with_settings(run: Run, *settings: str) -> RunConfig:
    return load_config(run.config_file, list(settings))


@contextmanager
def held(run: Run) -> Iterator[None]:
    """As another process holds it: the lock belongs to the open file."""
    run.jobs.mkdir(parents=True, exist_ok=True)
    with run.lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def test_a_launch_beside_another_changes_nothing(copied):
    config = with_settings(copied, "evaluate.batch_size=3", "merge.alphas=[0,0.25,1]")
    del config.data.shifts["clipart"]
    (copied.manifests / "sketch.json").write_text(
        (copied.manifests / "sketch.json").read_text().replace("sketch", "moved")
    )
    before = content(copied.path)
    with held(copied), pytest.raises(UserError, match=AT_WORK):
        start(config)
    assert content(copied.path) == before


def test_a_launch_beside_another_that_has_just_made_the_directory_changes_nothing(world, tmp_path):
    run = Run(tmp_path / "run")
    with held(run), pytest.raises(UserError, match=AT_WORK):
        start(load_config(world.config, [f"output={run.path}"]))
    assert content(run.path) == {"jobs/lock": b""}


def test_a_lock_that_was_taken_away_with_its_run_is_not_held(tmp_path, monkeypatch):
    run, lock = Run(tmp_path / "run"), fcntl.flock

    def unlinked_before(handle, how):
        run.lock_file.unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", unlinked_before)
    with pytest.raises(UserError, match=AT_WORK), only_one(run):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.shifts={cubism: /nowhere}", "evaluate.batch_size=3"], "nowhere"),
        (["data.datasets={photo: {num_samples: 12}}"], "12"),
        (["finetune.epochs=3", "evaluate.batch_size=3"], r"finetune\.epochs is 3.0 here and 2.0 there"),
    ],
    ids=["shards that are not there", "a dataset of another size", "another run"],
)
def test_a_mistake_leaves_an_existing_run_as_it_was(copied, settings, said):
    before = content(copied.path)
    with pytest.raises(UserError, match=said):
        start(with_settings(copied, *settings))
    assert content(copied.path) == before


def test_a_mistake_leaves_nothing_of_a_new_run(world, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        start(load_config(world.config, [f"output={tmp_path / 'run'}", "data.shifts={cubism: /nowhere}"]))
    assert list(tmp_path.iterdir()) == []


def test_a_launch_into_the_background_lets_go_of_the_lock_first(copied, monkeypatch):
    taken = []

    def take_the_lock(run):
        with only_one(run):
            taken.append(run.config_file.read_text())

    monkeypatch.setattr("wiseft_dist.launch.start._go_on_in_background", take_the_lock)
    start(with_settings(copied, "evaluate.batch_size=3"), detach=True)
    assert len(taken) == 1
    assert "batch_size: 3" in taken[0]


def running(job_id: str) -> str:
    return f"echo '{job_id}|RUNNING|None|0|0|node1|1795476071|NONE|UNLIMITED|'"


def test_what_slurm_would_refuse_of_any_step_is_said_before_the_first_is_submitted(world, tmp_path, program):
    program("scontrol", PARTITIONS)
    program("squeue", "exit 0")
    program("sbatch", f"[[ $* == *--test-only* ]] && exit 0; touch {tmp_path}/submitted; exit 1")
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"nothing was submitted: launch.report.partition is 'x', which Slurm does not"):
        start(load_config(world.config, [f"output={run.path}", "launch.executor=slurm", "launch.report.partition=x"]))
    assert not run.path.exists() and not (tmp_path / "submitted").exists()


def test_stages_without_a_job_in_the_queue_may_ask_for_something_else(copied, program):
    record(copied, [Entry("finetune", "7", str(copied.jobs / "finetune"), "slurm", 1.0)])
    program("squeue", running("7"))
    refuse_to_change_under_jobs(with_settings(copied, "launch.report.partition=x"), copied)
    for setting in ("launch.finetune.partition=x", "evaluate.batch_size=3"):
        with pytest.raises(UserError, match=rf"\(7\) with other settings.*`wiseft cancel {copied.path}`"):
            refuse_to_change_under_jobs(with_settings(copied, setting), copied)


def test_nothing_is_started_beside_a_batch_script_that_does_the_run(copied, program, monkeypatch):
    in_a_batch_job(monkeypatch, "19")
    record(copied, [Entry("report", "19", "/home/me", "slurm", 1.0, "/home/me/slurm-19.out")])
    program("squeue", running("19"))
    refuse_beside_others(copied)  # it is this job itself, which was requeued
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(UserError, match="Slurm job 19 waits or runs, and its batch script does the stages"):
        start(with_settings(copied))
    program("squeue", "exit 0")
    refuse_beside_others(copied)


def test_nothing_is_started_beside_a_stage_that_somebody_started_by_hand(copied, monkeypatch):
    monkeypatch.setattr("wiseft_dist.launch.others.LEAVING_SECONDS", 0.0)
    with subprocess.Popen(["sleep", "60"]) as process:
        claim = Claim(1, "a", "", 0, "node1", machine(), process.pid, started_at(process.pid), 1.0)
        file = claim_file(copied, "evaluate", "1-of-3")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(claim)))
        assert at_work(copied) == {"evaluate/1-of-3": claim}
        for launch in (start, prepare):
            with pytest.raises(UserError, match=rf"process {process.pid} on node1 is at work on evaluate/1-of-3"):
                launch(with_settings(copied))
        process.kill()
    assert at_work(copied) == {}


def test_a_batch_script_stands_in_the_ledger_with_what_is_left(copied, program, monkeypatch):
    in_a_batch_job(monkeypatch, "19")
    program("squeue", "exit 0")
    program("scontrol", "echo '   StdErr=/x'; echo '   StdOut=/home/me/a run-19.log'")
    shutil.rmtree(copied.report)
    before = read_ledger(copied)
    prepare(with_settings(copied))
    entries = read_ledger(copied)
    assert {name for name, entry in entries.items() if entry != before.get(name)} == {"report"}
    assert (entries["report"].job_id, entries["report"].executor) == ("19", "slurm")
    assert log_file(entries["report"], 3) == Path("/home/me/a run-19.log")


def test_a_batch_script_does_not_begin_beside_jobs_in_the_queue(copied, program, monkeypatch):
    in_a_batch_job(monkeypatch, "19")
    program("squeue", running("7"))
    record(copied, [Entry("report", "7", str(copied.jobs / "report"), "slurm", 1.0)])
    with pytest.raises(UserError, match=r"in the queue \(7\), and this batch script would do the same"):
        prepare(with_settings(copied))


def in_a_batch_job(monkeypatch: pytest.MonkeyPatch, job_id: str) -> None:
    for name, value in {"SLURM_JOB_ID": job_id, "ENVIRONMENT": "BATCH"}.items():
        monkeypatch.setenv(name, value)


def test_a_place_where_nothing_can_be_written_is_a_sentence(world, tmp_path):
    (tmp_path / "file").touch()
    config = load_config(world.config, [f"output={tmp_path / 'file' / 'run'}"])
    with pytest.raises(UserError, match=r"^output: .*/file/run: nothing can be written there \(Not a directory\)"):
        start(config)


def test_a_path_in_which_slurm_would_put_the_jobs_number_is_refused(world, tmp_path):
    settings = [f"output={tmp_path / 'run%j'}", "launch.executor=slurm"]
    with pytest.raises(UserError, match=r"run%j has a %, which begins Slurm's own placeholders"):
        start(load_config(world.config, settings))
    assert not (tmp_path / "run%j").exists()


def test_a_warning_cannot_speak_to_the_terminal(capsys):
    warn_of(["photo: \x1b[2Jtitled"])
    assert capsys.readouterr().err == "wiseft: photo: \\x1b[2Jtitled\n"


def test_a_prepared_run_has_its_directory_and_no_jobs(world, tmp_path):
    run = Run(tmp_path / "run")
    done = wiseft("run", "--prepare", world.config, f"output={run.path}", "launch.finetune.tasks_per_node=1")
    assert (done.returncode, done.stdout) == (0, f"{run.path}\n"), done.stderr
    assert run.load_config().launch.finetune.num_tasks == 1
    assert (run.manifests / "train.json").is_file()
    assert not run.checkpoints.exists() and read_ledger(run) == {}
    assert [event["event"] for event in read_events(run)] == ["code"]


def test_a_run_that_goes_on_with_other_code_says_so_once(world, tmp_path, capsys):
    config = load_config(world.config, [f"output={tmp_path / 'run'}"])
    run = prepare(config)
    append_event(run.events_file, stage="finetune", event="attempt", code="0123456789abcdef", version="0.0.1")
    capsys.readouterr()
    prepare(config)
    said = capsys.readouterr().err
    assert "what is left runs with other code than before: " in said
    assert f"({code_identity().digest}" in said and "and it was 0.0.1 (0123456789abcdef)" in said
    prepare(config)
    assert capsys.readouterr().err == ""
    assert [event["event"] for event in read_events(run)] == ["code", "attempt", "warning", "code"]


def test_of_earlier_code_the_revision_is_told_that_its_launch_knew(world, tmp_path, capsys):
    config = load_config(world.config, [f"output={tmp_path / 'run'}"])
    run = prepare(config)
    code = {"code": "0123456789abcdef", "version": "0.0.1"}
    append_event(run.events_file, stage="launch", event="code", revision="cafe" * 10, is_dirty=True, **code)
    append_event(run.events_file, stage="finetune", event="attempt", **code)
    prepare(config)
    assert "and it was 0.0.1 (0123456789abcdef, revision cafecafecafe with changes)" in capsys.readouterr().err


def test_a_container_that_nobody_starts_is_named(world, tmp_path, capsys):
    prepare(load_config(world.config, [f"output={tmp_path / 'run'}", "launch.all.container=x.sif"]))
    assert "launch.finetune.container is not used" in capsys.readouterr().err
