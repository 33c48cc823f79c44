"""What is told about a training, by a clock that is set by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_meter import CPU, Clock, make_meter, on_rank, spend, train

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.meter import Meter, untried
from wiseft_dist.ranks import Ranks

CUDA = torch.device("cuda")


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    """A clock, and a process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Clock()
    dist.destroy_process_group()


def read(meter: Meter, step: int) -> dict[str, float]:
    return meter.read(step, learning_rate=0.5, gradient_norm=7.0)


def test_a_line_of_metrics_is_about_the_steps_since_the_last(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock)
    train(meter, clock, [1.0, 2.0, 6.0], data=1.0, computing=5.0)
    values = read(meter, 3)
    assert values.pop("memory_gb") > 0.01
    assert values == {
        "loss": 3.0,
        "lr": 0.5,
        "gradient_norm": 7.0,
        "samples_per_second": 2.0,
        "samples_per_second_per_device": 2.0,
        "mfu_percent": 50.0,
        "data_wait_percent": pytest.approx(100 / 6),
        "eta_seconds": 17 * 6.0,
    }
    train(meter, clock, [8.0], computing=3.0)
    values = read(meter, 4)
    assert (values["loss"], values["samples_per_second"], values["data_wait_percent"]) == (8.0, 4.0, 0.0)


def test_rates_are_those_of_training_and_the_eta_counts_the_pauses(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock)
    train(meter, clock, [1.0, 1.0], data=1.0, computing=2.0)
    spend(meter, clock, 10.0, "validation")
    spend(meter, clock, 4.0, "checkpoint")
    values = read(meter, 2)
    assert (values["samples_per_second"], values["mfu_percent"]) == (4.0, 100.0)
    assert values["data_wait_percent"] == pytest.approx(100 / 3)
    assert values["eta_seconds"] == 18 * (3.0 + 7.0)
    train(meter, clock, [1.0, 1.0], computing=3.0)
    assert read(meter, 4)["eta_seconds"] == 16 * (3.0 + 3.5)


def test_a_resumed_session_counts_its_own_steps(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock, first_step=15)
    train(meter, clock, [1.0, 1.0], computing=3.0)
    spend(meter, clock, 2.0, "checkpoint")
    values = read(meter, 17)
    assert (values["samples_per_second"], values["eta_seconds"]) == (4.0, 3 * (3.0 + 1.0))


@pytest.mark.parametrize("unknown", ["flops", "peak"])
def test_utilisation_is_told_only_where_it_is_known(clock: Clock, unknown: str) -> None:
    meter = make_meter(Ranks(), clock, **{unknown: None})
    train(meter, clock, [1.0])
    assert "mfu_percent" not in read(meter, 1)
    assert "peak" not in meter.bottleneck()


def test_a_loss_that_is_no_number_is_told_and_the_next_line_is_clean(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock)
    train(meter, clock, [1.0, math.nan])
    assert math.isnan(read(meter, 2)["loss"])
    clock.wait(1.0)  # a step that was left out
    assert "loss" not in read(meter, 3)
    train(meter, clock, [2.0])
    clock.wait(1.0)
    assert read(meter, 5)["loss"] == 2.0


def test_an_error_in_a_phase_is_passed_on_and_its_time_counted(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock)
    with pytest.raises(StopIteration), meter.phase("data"):
        clock.wait(1.0)
        raise StopIteration
    clock.wait(3.0)
    assert read(meter, 1)["data_wait_percent"] == 25.0


@pytest.fixture(scope="module", params=[1, 2, 3])
def of_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(request.param)]


def test_ranks_tell_their_mean_loss_and_the_longest_wait(of_ranks: list[dict[str, Any]]) -> None:
    world_size = len(of_ranks)
    for found in of_ranks:
        values = found["first"]
        assert values["loss"] == pytest.approx(2.0 + (world_size - 1) / 2)
        assert values["data_wait_percent"] == 25.0 * (world_size - 1)
        assert values["samples_per_second"] == 3.0
        assert values["samples_per_second_per_device"] == 3.0 / world_size
        assert values["mfu_percent"] == pytest.approx(100 * 3.0 / world_size / 4)
        assert values["memory_gb"] == of_ranks[0]["first"]["memory_gb"]


def test_a_line_that_a_checkpoint_interrupted_is_the_same_to_the_bit(of_ranks: list[dict[str, Any]]) -> None:
    for found in of_ranks:
        assert found["resumed"]["loss"] == found["undisturbed"]["loss"]
        assert found["saved"] == of_ranks[0]["saved"] and found["saved"]["steps"] == 3


def test_a_line_goes_on_with_another_world_size(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock, first_step=5)
    meter.restore({"losses": [3.0, 5.0], "steps": 2})
    train(meter, clock, [5.0])
    assert read(meter, 6)["loss"] == 3.0


def finished(clock: Clock, *, data: float = 0.0, pauses: dict[str, float] | None = None, **settings: Any) -> str:
    """What is said at the end of four steps of 15 seconds each, and of pauses."""
    meter = make_meter(Ranks(), clock, **settings)
    train(meter, clock, [1.0] * 4, data=data, computing=15.0 - data)
    read(meter, 4)
    for phase, seconds in (pauses or {}).items():
        spend(meter, clock, seconds, phase)
    return meter.bottleneck()


def test_the_bottleneck_is_computing_where_all_else_takes_little(clock: Clock) -> None:
    assert finished(clock, data=0.6, pauses={"checkpoint": 2.4}, advice=("finetune.compile=true",)) == (
        "Bottleneck: computing (92% of 62 s); reading data 4%, checkpoints 4%, validation 0%. "
        "Computing at 21% of the device's peak. To try: finetune.compile=true."
    )
    assert finished(clock, peak=None) == (
        "Bottleneck: computing (100% of 60 s); reading data 0%, checkpoints 0%, validation 0%."
    )


def test_the_bottleneck_is_what_computing_waits_for_and_how_to_mend_it_is_said(clock: Clock) -> None:
    assert finished(clock, data=6.0) == (
        "Bottleneck: reading data (40% of 60 s); computing 60%, checkpoints 0%, validation 0%. "
        "Raise data.workers, or keep the shards on the node with data.cache."
    )
    saving = finished(clock, pauses={"checkpoint": 40.0, "validation": 20.0})
    assert saving.startswith("Bottleneck: checkpoints (33% of 2 min); computing 50%, reading data 0%, validation 17%.")
    assert "finetune.checkpoint.every_minutes" in saving
    validating = finished(clock, pauses={"checkpoint": 20.0, "validation": 40.0})
    assert validating.startswith("Bottleneck: validation (33% of 2 min)")
    assert "finetune.validation.every_epochs" in validating


def test_a_session_without_a_step_has_a_bottleneck_too(clock: Clock) -> None:
    meter = make_meter(Ranks(), clock, first_step=20)
    spend(meter, clock, 3.0, "checkpoint")
    assert meter.bottleneck().startswith("Bottleneck: checkpoints (100% of 3 s)")


def test_only_settings_that_are_not_in_force_are_advised() -> None:
    slow = FinetuneConfig(activation_checkpointing=True)
    assert untried(slow, device=CUDA, accumulation_steps=2) == (
        "finetune.precision=bf16",
        "finetune.compile=true",
        "finetune.activation_checkpointing=false",
        "a larger finetune.micro_batch_size",
    )
    fast = FinetuneConfig(precision="bf16", compile=True)
    assert untried(fast, device=CUDA, accumulation_steps=1) == ()
    assert untried(FinetuneConfig(zero_stage=3, precision="fp16"), device=CUDA, accumulation_steps=1) == ()
    assert untried(FinetuneConfig(), device=CPU, accumulation_steps=1) == ()
    head = FinetuneConfig(recipe="linear_head", precision="bf16")
    assert untried(head, device=CUDA, accumulation_steps=1) == ()


def test_memory_is_the_process_own_and_not_its_parents() -> None:
    held = bytearray(b"x") * 700_000_000  # resident here: a program that this process starts has not held it
    code = "import torch; from wiseft_dist.finetune.meter import _peak_memory; print(_peak_memory(torch.device('cpu')))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 50_000_000 < int(printed) < len(held)
