"""What a launch does to a run before its jobs: nothing that a mistake or another launch could suffer from."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_run import wiseft

from wiseft_dist.code_identity import code_identity
from wiseft_dist.config import RunConfig, load_config
from wiseft_dist.errors import UserError
from wiseft_dist.launch.follow import only_one
from wiseft_dist.launch.ledger import read_ledger
from wiseft_dist.launch.start import prepare, start, warn_of
from wiseft_dist.run import Run
from wiseft_dist.tracking import append_event, read_events

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

    monkeypatch.setattr("wiseft_dist.launch.start._start_in_background", take_the_lock)
    start(with_settings(copied, "evaluate.batch_size=3"), detach=True)
    assert len(taken) == 1
    assert "batch_size: 3" in taken[0]


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


def test_a_container_that_nobody_starts_is_named(world, tmp_path, capsys):
    prepare(load_config(world.config, [f"output={tmp_path / 'run'}", "launch.all.container=x.sif"]))
    assert "launch.finetune.container is not used" in capsys.readouterr().err
