"""Steps and learning rates, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_finetune import tiny_config

from wiseft_dist.config import ScheduleConfig
from wiseft_dist.finetune.schedule import learning_rate, total_steps


def rates(name: str, *, warmup_steps: int, total: int, **settings: Any) -> list[float]:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup_steps, **settings)
    return [learning_rate(step, peak=8.0, total_steps=total, schedule=schedule) for step in range(total)]


def test_cosine_rises_in_a_line_and_falls_to_zero() -> None:
    expected = [2.0, 4.0, 6.0, 8.0, 8.0, 4 + 8**0.5, 4.0, 4 - 8**0.5]
    assert rates("cosine", warmup_steps=4, total=8) == pytest.approx(expected)
    schedule = ScheduleConfig(name="cosine", warmup_steps=4)
    assert learning_rate(8, peak=8.0, total_steps=8, schedule=schedule) == pytest.approx(0.0)


def test_constant_stays_at_the_peak_after_its_warm_up() -> None:
    assert rates("constant", warmup_steps=2, total=5) == [4.0, 8.0, 8.0, 8.0, 8.0]


def test_linear_rises_in_a_line_and_falls_in_a_line_to_zero() -> None:
    assert rates("linear", warmup_steps=2, total=6) == pytest.approx([4.0, 8.0, 8.0, 6.0, 4.0, 2.0])
    schedule = ScheduleConfig(name="linear", warmup_steps=2)
    assert learning_rate(6, peak=8.0, total_steps=6, schedule=schedule) == 0.0


def test_step_falls_by_the_factor_at_each_fraction_of_all_steps() -> None:
    found = rates("step", warmup_steps=2, total=8, milestones=(0.5, 0.75), factor=0.5)
    assert found == [4.0, 8.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    assert rates("step", warmup_steps=0, total=4, milestones=(0.75, 0.5), factor=0.5) == [8.0, 8.0, 4.0, 2.0]
    assert rates("step", warmup_steps=0, total=5, milestones=(0.5,), factor=0.25) == [8.0, 8.0, 8.0, 2.0, 2.0]
    assert rates("step", warmup_steps=0, total=3, milestones=(), factor=0.5) == [8.0, 8.0, 8.0]


def test_a_milestone_that_passed_during_the_warm_up_counts_after_it() -> None:
    assert rates("step", warmup_steps=3, total=6, milestones=(0.2,), factor=0.5) == pytest.approx(
        [8 / 3, 16 / 3, 8.0, 4.0, 4.0, 4.0]
    )


@pytest.mark.parametrize("milestone", [0.07, 0.14, 0.28, 0.29, 0.57])
def test_a_milestone_is_not_late_by_rounding(milestone: float) -> None:
    found = rates("step", warmup_steps=0, total=100, milestones=(milestone,), factor=0.5)
    assert found.index(4.0) == round(100 * milestone)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates("cosine", warmup_steps=0, total=4)[0] == 8.0


def test_a_run_that_ends_in_its_warm_up_never_reaches_the_peak() -> None:
    assert rates("cosine", warmup_steps=10, total=3) == pytest.approx([0.8, 1.6, 2.4])


@pytest.mark.parametrize(
    ("epochs", "num_samples", "steps"), [(1, 16, 2), (1, 17, 3), (2, 17, 5), (0.5, 17, 2), (0.1, 3, 1), (10, 8, 10)]
)
def test_every_sample_is_shown_as_often_as_asked(tmp_path: Path, epochs: float, num_samples: int, steps: int) -> None:
    config = tiny_config(tmp_path / "run", tmp_path, epochs=epochs, global_batch_size=8)
    assert total_steps(config, num_samples) == steps


@pytest.mark.parametrize("epochs", [0.07, 0.14, 0.28, 0.29, 0.57, 1.1])
def test_a_fraction_of_an_epoch_does_not_gain_a_step_by_rounding(tmp_path: Path, epochs: float) -> None:
    config = tiny_config(tmp_path / "run", tmp_path, epochs=epochs, global_batch_size=1)
    assert total_steps(config, 100) == round(epochs * 100)
