"""One rank of the real loop with real engines and checkpoints, on numbers made here: ``looped_rank.py RUN CASE``.

CASE is the JSON of a :class:`Case`. Ends as the command line does.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.config import FinetuneConfig, ValidationConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.receipt import Account
from wiseft_dist.distributed import device_of, process_group
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.finetune.checkpoint import Checkpointer
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.loop import Loop
from wiseft_dist.finetune.meter import Meter
from wiseft_dist.finetune.validation import ValidationTimes, Validator
from wiseft_dist.finetune.watchdog import Watchdog
from wiseft_dist.ranks import Ranks, discover_ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker

SAMPLES = 12
"""On each rank, a step."""
POISON = 3
"""A class whose samples have no finite loss."""
SMALL_FILE = 4096


@dataclass(frozen=True)
class Case:
    """What is unusual about a training."""

    total_steps: int = 12
    finetune: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    poisoned: dict[str, list[int]] = field(default_factory=dict)
    """By step, from 1: ranks with a sample whose loss is not finite."""
    full_disk: tuple[int, int] | None = None
    """From this step to before that one, rank 1 can write no file longer than a few kB."""
    seconds_a_step: float = 0.0

    def json(self) -> str:
        return json.dumps(asdict(self))


class Linear:
    """A linear classifier."""

    def loss(self, forward: Callable[..., Any], inputs: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(forward(inputs), targets.clamp(max=POISON - 1))
        return loss * torch.where((targets == POISON).any(), float("nan"), 1.0)


def batches(case: Case, rank: int, *, first_step: int) -> Iterator[Batch]:
    for step in range(first_step + 1, case.total_steps + 1):
        _limit_files(case, rank, step)
        time.sleep(case.seconds_a_step)
        generator = torch.Generator().manual_seed(1000 * step + rank)
        targets = torch.randint(0, POISON, (SAMPLES,), generator=generator)
        if rank in case.poisoned.get(str(step), ()):
            targets[5] = POISON
        keys = tuple(f"{step}/{rank}/{index}" for index in range(SAMPLES))
        yield Batch(torch.randn(SAMPLES, 400, generator=generator), targets, keys, np.arange(SAMPLES))


def _limit_files(case: Case, rank: int, step: int) -> None:
    if case.full_disk is None or rank != 1:
        return
    first, last = case.full_disk
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE if first <= step < last else hard, hard))


def train(run: Run, case: Case, ranks: Ranks) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = FinetuneConfig.model_validate({"schedule": {"name": "constant", "warmup_steps": 0}} | case.finetune)
    device, minutes = device_of(ranks), 1.0
    module = nn.Sequential(nn.Linear(400, 300), nn.GELU(), nn.Linear(300, POISON))
    engine = Engine(module, config, device=device, micro_batch_size=SAMPLES, accumulation_steps=1)
    tracker = Tracker(run, "finetune") if ranks.is_main else None
    checkpointer = Checkpointer(run, engine, config.checkpoint, ranks, identity=case.identity, tracker=tracker)
    first_step = checkpointer.resume()
    times = ValidationTimes(ValidationConfig(), 1, 1, case.total_steps)
    recipe: Any = Linear()
    Loop(
        engine=engine,
        recipe=recipe,
        prepare=lambda inputs: inputs,
        config=config,
        micro_batch_size=SAMPLES,
        total_steps=case.total_steps,
        ranks=ranks,
        seed=0,
        account=Account(10**9, 0, 0),
        meter=Meter(device, ranks, case.total_steps, SAMPLES * ranks.world_size, None, None, first_step),
        validator=Validator(None, times, recipe, engine, ranks, lambda inputs: inputs, run.zero_shot, 1, 0),
        checkpointer=checkpointer,
        watchdog=Watchdog(run.events_file, ranks, timeout_minutes=minutes),
        timeout_minutes=minutes,
        tracker=tracker,
    ).run(batches(case, ranks.rank, first_step=first_step), first_step=first_step)


def main() -> None:
    run, case, ranks = Run(Path(sys.argv[1])), Case(**json.loads(sys.argv[2])), discover_ranks()
    try:
        with process_group(ranks, timeout_minutes=1):
            train(run, case, ranks)
    except (RunError, UserError) as error:
        print(f"wiseft: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
