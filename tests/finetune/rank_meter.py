"""What each rank does in the meter's tests, by a clock that is set by hand; spawned processes import it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wiseft_dist.finetune.meter import Meter
from wiseft_dist.ranks import Ranks

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def make_meter(ranks: Ranks, clock: Clock, **settings: Any) -> Meter:
    """Of a run of 20 steps with 12 samples each; a device does 4 of them a second at its peak."""
    first_step = settings.pop("first_step", 0)
    flops, peak = settings.pop("flops", 5.0), settings.pop("peak", 20.0)
    return Meter(CPU, ranks, 20, 12, flops, peak, first_step, clock=clock, **settings)


def train(meter: Meter, clock: Clock, losses: list[float], *, data: float = 0.0, computing: float = 1.0) -> None:
    """A step for each loss."""
    for loss in losses:
        with meter.phase("data"):
            clock.wait(data)
        clock.wait(computing)
        meter.add(torch.tensor(loss))


def spend(meter: Meter, clock: Clock, seconds: float, phase: Any) -> None:
    with meter.phase(phase):
        clock.wait(seconds)


def on_rank(rank: int, world_size: int, folder: str) -> None:
    """Rank ``r`` waits ``r`` seconds for data at each step, and computes in the rest of the four that a step takes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    ranks, clock = Ranks(rank, world_size), Clock()
    meter = make_meter(ranks, clock)
    train(meter, clock, [1.0 + rank, 3.0 + rank], data=rank, computing=4 - rank)
    found = {"first": meter.read(2, learning_rate=0.1, gradient_norm=2.0)}
    train(meter, clock, [0.1 * (1 + rank)] * 3, data=rank, computing=4 - rank)
    saved = meter.unread()

    later = make_meter(ranks, clock, first_step=5)
    later.restore(saved)
    for each in (meter, later):
        train(each, clock, [0.7 + rank] * 2, data=rank, computing=4 - rank)
    found |= {
        "undisturbed": meter.read(7, learning_rate=0.1, gradient_norm=2.0),
        "resumed": later.read(7, learning_rate=0.1, gradient_norm=2.0),
        "saved": saved,
    }
    torch.save(found, Path(folder) / f"rank_{rank}.pt")
    dist.destroy_process_group()
