"""A run that dies goes on from its last whole checkpoint as if nothing had happened."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import finish, launch, metrics, start, tiny_config, trained, training_state, write_shards

from wiseft_dist.commits import COMMIT_FILE, is_committed, read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.run import Run, committed_checkpoints, newest_checkpoint, open_run
from wiseft_dist.tracking import read_events

SETTINGS: dict[str, Any] = {"processes": 2, "patch_dropout": 0.5, "zero_stage": 2, "epochs": 12}
STEPS = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def killed_config(folder: Path, shards: Path, **settings: Any) -> RunConfig:
    checkpoint = {"every_minutes": None, "every_steps": 4, "keep_last": 3}
    return tiny_config(folder, shards, **(SETTINGS | {"checkpoint": checkpoint} | settings))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """A run whose processes were killed in mid-training."""
    run = open_run(killed_config(tmp_path_factory.mktemp("killed") / "run", shards))
    ranks = start(run, 2)
    deadline = time.monotonic() + 100
    while not is_committed(run.checkpoints / "step_12") and time.monotonic() < deadline:
        time.sleep(0.002)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    assert [code for code, _ in finish(ranks)] == [-signal.SIGKILL] * 2
    assert run.final_checkpoint() is None
    return run


@pytest.fixture
def copy(killed: Run, tmp_path: Path, shards: Path) -> Run:
    """The killed run, in a directory of its own."""
    shutil.copytree(killed.path, tmp_path / "run")
    shutil.copy(killed.path.with_suffix(".json"), tmp_path / "run.json")
    return Run(tmp_path / "run")


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path, shards: Path, copy: Run) -> None:
    undisturbed = trained(tiny_config(tmp_path / "undisturbed", shards, **SETTINGS))
    newest = newest_checkpoint(copy)
    saved_at = read_commit(newest)["step"]
    _leave_half_written_saves(copy, newest)
    for code, error in launch(copy, 2):
        assert code == 0, error[-4000:]

    sessions = [event["step"] for event in read_events(copy) if event["event"] == "started"]
    assert sessions == [0, saved_at] and saved_at >= 12
    assert metrics(copy, "loss") == metrics(undisturbed, "loss")
    assert list(metrics(copy, "loss")) == list(range(1, STEPS + 1))
    found, expected = training_state(copy), training_state(undisturbed)
    assert found.keys() == expected.keys() and {key.split("/")[0] for key in found} == {"fp32", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    kept = [read_commit(folder)["step"] for folder in committed_checkpoints(copy)]
    assert kept == [STEPS - 8, STEPS - 4, STEPS]
    assert not (copy.checkpoints / ".saving").exists()


def _leave_half_written_saves(run: Run, newest: Path) -> None:
    """What a save leaves behind that dies while it writes, and what a copy leaves that breaks off."""
    (run.checkpoints / ".saving" / "step_999").mkdir(parents=True, exist_ok=True)
    (run.checkpoints / ".saving" / "step_999" / "mp_rank_00_model_states.pt").write_bytes(b"half")
    shutil.copytree(newest, run.checkpoints / "step_998", ignore=shutil.ignore_patterns(COMMIT_FILE))
    cut = shutil.copytree(newest, run.checkpoints / "step_997")
    file = next(cut.glob("*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-1])


def test_a_checkpoint_with_a_flipped_byte_is_refused_by_every_rank(copy: Run) -> None:
    newest = newest_checkpoint(copy)
    file = sorted(newest.glob("*optim_states.pt"))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for code, error in launch(copy, 2):
        assert code == 2 and "Traceback" not in error
        assert f"wiseft: {file}: not the file that was committed. Delete {newest} to resume" in error


def test_the_best_on_the_held_out_piece_is_saved_and_kept(tmp_path: Path, shards: Path) -> None:
    settings = {"epochs": 6, "optimizer": {"lr": 3e-3}, "validation": {"every_steps": 1}}
    config = tiny_config(tmp_path / "run", shards, **settings)
    data = config.data.model_copy(update={"id_val_fraction": 0.3})
    run = trained(config.model_copy(update={"data": data}))
    scores = metrics(run, "id_val/top1")
    last = max(scores)
    assert list(scores) == list(range(1, last + 1)) and len(set(scores.values())) > 2
    better = [step for step in scores if all(scores[step] > scores[earlier] for earlier in range(1, step))]
    saved = [event["step"] for event in read_events(run) if event["event"] == "saved"]
    assert saved == sorted({*better, last})
    records = [read_commit(folder) for folder in committed_checkpoints(run)]
    assert [record["step"] for record in records] == sorted({*saved[-2:], better[-1]})
    assert all(record["metrics"]["id_val/top1"] == scores[record["step"]] for record in records)
