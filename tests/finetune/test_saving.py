"""When the loop saves, and what happens when it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from looped_rank import Case
from tiny_finetune import finish, metrics, start_ranks, training_state

from wiseft_dist.commits import read_commit
from wiseft_dist.run import Run, committed_checkpoints
from wiseft_dist.tracking import read_events

PROGRAM = Path(__file__).with_name("looped_rank.py")
NEVER = {"every_steps": None, "every_minutes": None}


def start(run: Run, case: Case) -> list[subprocess.Popen[str]]:
    run.path.mkdir(exist_ok=True)
    return start_ranks([sys.executable, str(PROGRAM), str(run.path), case.json()], 2)


def loop(run: Run, case: Case, *, code: int = 0) -> list[str]:
    ended = finish(start(run, case))
    assert [each for each, _ in ended] == [code, code], ended[0][1][-3000:]
    return [error for _, error in ended]


def steps(run: Run, name: str) -> list[int]:
    return [event["step"] for event in read_events(run) if event["event"] == name]


def wait_for_step(run: Run, step: int, ranks: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while step not in metrics(run, "loss"):
        assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
        time.sleep(0.02)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.matrix) for each in (signal.SIGTERM, signal.SIGUSR2))],
)
def test_a_signal_to_one_rank_saves_on_all_and_nothing_is_done_twice(tmp_path: Path, number: signal.Signals) -> None:
    settings = {"log_every": 3, "zero_stage": 1, "checkpoint": NEVER}  # a line of metrics may lie in both sessions
    run, undisturbed = Run(tmp_path / "run"), Run(tmp_path / "undisturbed")
    slow = Case(total_steps=40, finetune=settings, seconds_a_step=0.1)
    ranks = start(run, slow)
    wait_for_step(run, 6, ranks)
    ranks[1].send_signal(number)
    ended = finish(ranks)
    assert [code for code, _ in ended] == [130, 130]
    assert f"rank 1 got {number.name}: saving a checkpoint" in ended[1][1] and "got" not in ended[0][1]
    [saved] = steps(run, "saved")
    assert 6 <= saved < 40 and [read_commit(each)["step"] for each in committed_checkpoints(run)] == [saved]
    assert steps(run, "metrics") == list(range(3, saved + 1, 3))

    loop(run, Case(total_steps=40, finetune=settings))
    assert steps(run, "metrics") == [*range(3, 41, 3), 40]
    loop(undisturbed, Case(total_steps=40, finetune=settings))
    for name in ("loss", "gradient_norm"):
        assert metrics(run, name) == metrics(undisturbed, name)
    found, expected = training_state(run), training_state(undisturbed)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def test_the_clock_of_the_first_rank_asks_for_saves(tmp_path: Path) -> None:
    settings = {"log_every": 1000, "checkpoint": {"every_minutes": 0.5 / 60, "every_steps": None}}
    run = Run(tmp_path / "run")
    loop(run, Case(total_steps=40, finetune=settings, seconds_a_step=0.1))
    saved = steps(run, "saved")
    assert 3 <= len(saved) <= 20 and saved[-1] == 40
    assert all(later - earlier > 1 for earlier, later in pairwise(saved[:-1]))  # asked once each


def test_a_disk_that_is_full_on_one_rank_loses_a_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    settings = {"checkpoint": {"every_minutes": None, "every_steps": 2}}
    run = Run(tmp_path / "run")
    loop(run, Case(total_steps=8, finetune=settings, full_disk=(4, 6)))
    assert steps(run, "saved") == [2, 6, 8]
    [warning] = [event for event in read_events(run) if event["event"] == "warning"]
    assert warning["step"] == 4 and f"{run.checkpoints / 'step_4'} could not be saved" in warning["warning"]
    assert "zero_pp_rank_1" in warning["warning"]
    assert not (run.checkpoints / ".saving").exists()


def test_a_final_state_that_cannot_be_saved_is_an_error_on_every_rank(tmp_path: Path) -> None:
    settings = {"checkpoint": {"every_minutes": None, "every_steps": 2}}
    run = Run(tmp_path / "run")
    for error in loop(run, Case(total_steps=4, finetune=settings, full_disk=(4, 6)), code=1):
        assert f"wiseft: {run.checkpoints / 'step_4'} could not be saved" in error and "Traceback" not in error
    assert run.final_checkpoint() is None and committed_checkpoints(run) == [run.checkpoints / "step_2"]
    loop(run, Case(total_steps=4, finetune=settings))
    assert run.final_checkpoint() == run.checkpoints / "step_4"


def test_a_checkpoint_of_something_else_is_refused_by_its_differences(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    ours = {"finetune.recipe": "end_to_end", "data": "1234", "finetune.optimizer.betas": (0.9, 0.99)}
    loop(run, Case(total_steps=2, identity=ours))
    loop(run, Case(total_steps=4, identity=ours))
    for error in loop(run, Case(total_steps=6, identity=ours | {"finetune.recipe": "flyp", "data": "99"}), code=1):
        assert (
            f"wiseft: {run.checkpoints / 'step_4'} was saved by another run: data is '99' here and '1234' there; "
            "finetune.recipe is 'flyp' here and 'end_to_end' there. Choose another output" in error
        )
