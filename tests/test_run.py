from __future__ import annotations

import pytest

from wiseft_dist.commits import COMMIT_FILE, commit_digest, committing, is_committed, read_commit, write_atomically
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.run import Run, alpha_name, find_run, newest_checkpoint, open_run


def config_of(tmp_path, **settings) -> RunConfig:
    least = {"output": str(tmp_path / "run"), "model": {"architecture": "A"}, "data": {"train": "t"}}
    return RunConfig.model_validate(least | settings)


def write(folder, **record):
    with committing(folder, **record) as aside:
        (aside / "weights").write_bytes(b"12345")
        (aside / "inner").mkdir()
        (aside / "inner" / "more").write_bytes(b"678")
    return folder


def test_a_committed_folder_knows_the_size_and_hash_of_every_file(tmp_path):
    folder = write(tmp_path / "a", step=3)
    record = read_commit(folder)
    assert record["step"] == 3
    assert {name: entry["bytes"] for name, entry in record["files"].items()} == {"weights": 5, "inner/more": 3}
    assert is_committed(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", ["longer", "gone", "no record", "half a record", "a binary record"])
def test_a_damaged_folder_is_not_committed(tmp_path, damage):
    folder = write(tmp_path / "a")
    match damage:
        case "longer":
            (folder / "weights").write_bytes(b"123456")
        case "gone":
            (folder / "inner" / "more").unlink()
        case "no record":
            (folder / COMMIT_FILE).unlink()
        case "half a record":
            (folder / COMMIT_FILE).write_text('{"files": {"wei')
        case "a binary record":
            (folder / COMMIT_FILE).write_bytes(b"\xff\xfe\x00")
    assert not is_committed(folder)


def test_interrupted_writing_leaves_nothing_behind_and_what_was_there_before(tmp_path):
    def interrupted(folder):
        with committing(folder) as aside:
            (aside / "weights").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    before = commit_digest(write(tmp_path / "old"))
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "old")
    assert commit_digest(tmp_path / "old") == before
    assert is_committed(tmp_path / "old")


def test_a_directory_with_no_more_than_the_lock_of_a_launch_is_empty(tmp_path):
    config = config_of(tmp_path)
    run = Run(tmp_path / "run")
    run.jobs.mkdir(parents=True)
    run.lock_file.touch()
    assert find_run(config) == run
    (run.jobs / "mine").touch()
    with pytest.raises(UserError, match="holds other files and no run"):
        find_run(config)


def test_committing_again_replaces_the_folder_as_a_whole(tmp_path):
    before = commit_digest(write(tmp_path / "a"))
    with committing(tmp_path / "a") as aside:
        (aside / "other").write_text("x")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"other", COMMIT_FILE}
    assert commit_digest(tmp_path / "a") != before


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path):
    write_atomically(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "after \ud800")
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("alpha", "name"), [(0.5, "alpha_0.50"), (0.125, "alpha_0.125"), (1, "alpha_1.00"), (0.333, "alpha_0.333")]
)
def test_an_alpha_has_two_digits_where_they_are_enough(alpha, name):
    assert alpha_name(alpha) == name


def test_a_new_run_holds_its_resolved_configuration(tmp_path):
    config = config_of(tmp_path)
    assert open_run(config).load_config() == config
    assert open_run(config).load_config() == config


def test_the_directory_of_another_run_is_refused_with_the_settings_that_differ(tmp_path):
    open_run(config_of(tmp_path))
    with pytest.raises(UserError) as caught:
        open_run(config_of(tmp_path, seed=1, finetune={"optimizer": {"lr": 0.5}}))
    assert "seed is 1 here and 0 there" in str(caught.value)
    assert "finetune.optimizer.lr is 0.5 here and 3e-05 there" in str(caught.value)
    assert "epochs" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"merge": {"alphas": "0,0.5,1"}},
        {"data": {"train": "t", "reference": {"a": "x"}, "shifts": {"b": "y"}}},
        {"finetune": {"log_every": 1, "checkpoint": {"every_steps": 5}}},
        {"launch": {"executor": "slurm"}},
    ],
)
def test_what_does_not_change_the_weights_may_change_and_is_written_down(tmp_path, change):
    open_run(config_of(tmp_path))
    changed = config_of(tmp_path, **change)
    assert open_run(changed).load_config() == changed


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    open_run(config_of(tmp_path))  # an empty one is taken
    (tmp_path / "run" / "config.yaml").rename(tmp_path / "run" / "thesis.tex")
    with pytest.raises(UserError, match="holds other files and no run"):
        open_run(config_of(tmp_path))


def test_a_directory_that_is_no_run_says_so(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.yaml"):
        Run(tmp_path).load_config()


def test_the_newest_checkpoint_is_the_committed_one_with_the_most_steps(tmp_path):
    run = Run(tmp_path)
    assert newest_checkpoint(run) is None
    for step in (9, 10, 100):
        write(run.checkpoints / f"step_{step}", final=step == 10)
    (run.checkpoints / "step_100" / "weights").unlink()
    assert newest_checkpoint(run) == run.checkpoints / "step_10" == run.finished_checkpoint()


def test_a_run_that_is_not_trained_to_the_end_says_what_to_do(tmp_path):
    write(Run(tmp_path).checkpoints / "step_9", final=False)
    with pytest.raises(RunError, match=r"fine-tuning has not finished\. Run `wiseft finetune"):
        Run(tmp_path).finished_checkpoint()
