"""A run that is killed again and again ends with the bits of one that never was.

By default two kills at ZeRO stage 2. ``make test-kills`` sets ``WISEFT_KILLS=20`` and ``WISEFT_KILLED_STAGES=1,2,3``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import log_of, start_forked
from tiny_finetune import metrics, tiny_config, training_state, write_shards

from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events

KILLS = int(os.environ.get("WISEFT_KILLS", "2"))
STAGES = [int(stage) for stage in os.environ.get("WISEFT_KILLED_STAGES", "2").split(",")]
SEED = int(os.environ.get("WISEFT_KILL_SEED", "0"))
STEPS = 60
LAST_KILL = 50
"""A kill comes somewhat after the step it waits for, and must come before the end."""
PATIENCE_SECONDS = 120
GRACE_SECONDS = 30
SETTINGS: dict[str, Any] = {
    "epochs": 15,  # of the 32 samples that are not held out
    "micro_batch_size": 2,  # of the four that a rank has of a step
    "validation": {"every_steps": 7},
    "ema": {"decay": 0.9},
    "optimizer": {"lr": 1e-3, "decay_biases_and_norms": False},
    "checkpoint": {"every_minutes": None, "every_steps": 3},
}


@dataclass(frozen=True)
class Kill:
    """When, and which of the two ranks."""

    step: int
    delay_seconds: float
    in_save: bool
    rank: int


def random_kills(stage: int) -> list[Kill]:
    """In rising order of steps, so that each session gets further; every third one, the second first, in a save."""
    chance = random.Random(f"{SEED}/{stage}")
    steps = sorted(chance.sample(range(1, LAST_KILL), KILLS))
    return [Kill(step, chance.uniform(0, 0.15), i % 3 == 1, chance.randrange(2)) for i, step in enumerate(steps)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, stage: int
) -> None:
    shards = write_shards(tmp_path / "shards")
    settings = SETTINGS | {"zero_stage": stage}
    shared: dict[str, Any] = {"processes": 2, "patch_dropout": 0.5, "id_val_fraction": 0.2}
    undisturbed = open_run(tiny_config(tmp_path / "undisturbed", shards, **shared, **settings))
    _run_to_the_end(undisturbed)
    run = open_run(tiny_config(tmp_path / "killed", shards, **shared, **settings))
    for kill in random_kills(stage):
        found_saving = _start_and_kill(run, kill)
        print(f"ZeRO {stage}: {kill}{', while it saved' if found_saving else ''}", flush=True)
        assert run.final_checkpoint() is None
    _run_to_the_end(run)

    sessions = [event["step"] for event in read_events(run) if event["event"] == "started"]
    print(f"ZeRO {stage}: {KILLS} kills, sessions from steps {sessions}", flush=True)
    assert len(sessions) == KILLS + 1 and sessions == sorted(sessions)
    for name in ("loss", "gradient_norm", "lr", "id_val/top1", "id_val/loss"):
        assert metrics(run, name) == metrics(undisturbed, name)
    assert list(metrics(run, "id_val/top1")) == [*range(7, STEPS, 7), STEPS]
    assert list(metrics(run, "loss")) == list(range(1, STEPS + 1))
    found, expected = training_state(run), training_state(undisturbed)
    assert found.keys() == expected.keys()
    assert {key.split("/")[0] for key in found} == {"fp32", "exp_avg", "exp_avg_sq", "ema"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    print(f"ZeRO {stage}: {len(found)} tensors and {3 * STEPS} metrics are the same to the bit", flush=True)


def _run_to_the_end(run: Run) -> None:
    ranks = start_forked(run, 2)
    for number, rank in enumerate(ranks):
        rank.join(PATIENCE_SECONDS)
        assert rank.exitcode == 0, log_of(run, number).read_text()[-4000:]


def _start_and_kill(run: Run, kill: Kill) -> bool:
    """One session; its one rank is killed and the other must end by itself.

    Returns:
        Whether a save was under way.
    """
    left_behind = _save_under_way(run)
    ranks = start_forked(run, 2)
    try:
        _wait(ranks, lambda: kill.step in metrics(run, "loss") and _is_training(run))
        if kill.in_save:
            _wait(ranks, lambda: _save_under_way(run) not in (None, left_behind))
        else:
            time.sleep(kill.delay_seconds)
        found_saving = _save_under_way(run) not in (None, left_behind)
        ranks[kill.rank].kill()
        for rank in ranks:
            rank.join(GRACE_SECONDS)
        codes = [rank.exitcode for rank in ranks]
        assert codes[kill.rank] == -signal.SIGKILL, f"{kill} came too late: exit codes {codes}"
        assert codes[1 - kill.rank] not in (0, None), log_of(run, 1 - kill.rank).read_text()[-4000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return found_saving


def _save_under_way(run: Run) -> tuple[int, int] | None:
    """What tells a save from the one before, which may have died."""
    try:
        found = (run.checkpoints / ".saving").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _is_training(run: Run) -> bool:
    """Whether this session, and not only an earlier one, has finished a step."""
    last = [event["event"] for event in read_events(run) if event["event"] in ("started", "metrics", "failed")]
    return last[-1] == "metrics"


def _wait(ranks: list[BaseProcess], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the session came to nothing"
        assert all(rank.is_alive() for rank in ranks), [rank.exitcode for rank in ranks]
        time.sleep(0.002)
