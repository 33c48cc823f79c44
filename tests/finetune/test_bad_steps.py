"""A loss that is no number: one is left out and told, many in a row stop the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from looped_rank import SAMPLES, Case
from tiny_finetune import finish, metrics, start_ranks

from wiseft_dist.finetune.bad_steps import BadStep
from wiseft_dist.run import Run, committed_checkpoints
from wiseft_dist.tracking import read_events

PROGRAM = Path(__file__).with_name("looped_rank.py")


def loop(run: Run, case: Case, *, processes: int = 2) -> list[tuple[int, str]]:
    run.path.mkdir(exist_ok=True)
    return finish(start_ranks([sys.executable, str(PROGRAM), str(run.path), case.json()], processes))


def events(run: Run, name: str) -> Iterator[dict[str, Any]]:
    return (event for event in read_events(run) if event["event"] == name)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_few_bad_steps_are_left_out_and_named(tmp_path: Path, stage: int) -> None:
    settings = {"zero_stage": stage, "log_every": 2, "max_bad_steps": 2}
    poisoned = {"3": [1], "4": [0, 1], "8": [1], "9": [1]}
    run = Run(tmp_path / "run")
    for code, error in loop(run, Case(finetune=settings, poisoned=poisoned)):
        assert code == 0, error[-3000:]
    assert run.final_checkpoint() == run.checkpoints / "step_12"
    assert [event["step"] for event in events(run, "bad_step")] == [3, 4, 8, 9]
    first, second, *_ = (event["reason"] for event in events(run, "bad_step"))
    keys = [f"'3/1/{index}'" for index in range(8)]
    assert first == f"step 3: the loss of rank 1 is nan, on its samples {', '.join(keys)} and {SAMPLES - 8} more"
    assert "rank 0 is nan" in second and "rank 1 is nan" in second
    losses = metrics(run, "loss")
    assert list(metrics(run, "lr")) == [2, 4, 6, 8, 10, 12]
    assert list(losses) == [2, 6, 8, 10, 12]  # up to step 4 none was taken
    assert all(map(math.isfinite, losses.values())) and 0.5 < losses[8] < 1.5  # the mean of those that were taken
    assert losses[12] < losses[2]


def test_more_bad_steps_in_a_row_than_may_be_stop_every_rank_with_what_is_known(tmp_path: Path) -> None:
    settings = {"max_bad_steps": 2, "checkpoint": {"every_steps": 2, "every_minutes": None}}
    poisoned = {"2": [1], "3": [1], "5": [1], "6": [1], "7": [1]}
    run = Run(tmp_path / "run")
    for code, error in loop(run, Case(finetune=settings, poisoned=poisoned)):
        assert code == 1 and "Traceback" not in error
        assert "wiseft: steps 5 to 7 were without a finite loss and gradient, and finetune.max_bad_steps is 2" in error
        assert "step 7: the loss of rank 1 is nan, on its samples '7/1/0'" in error and "rank 0" not in error
        assert f"The last good checkpoint is {run.checkpoints / 'step_6'}" in error
    assert committed_checkpoints(run)[-1] == run.checkpoints / "step_6"


def test_a_gradient_alone_can_be_bad() -> None:
    assert str(BadStep(7, {}, {})) == "step 7: every rank's loss is finite, and the gradient is not"
