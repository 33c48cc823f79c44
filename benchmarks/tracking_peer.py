"""`wiseft finetune` with W&B in the training's own process, as most training scripts have it: offline, a call a line.

python -m benchmarks.tracking_peer finetune RUN
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

import wiseft_dist.finetune.stage
from wiseft_dist.config import RunConfig
from wiseft_dist.pipeline import execute
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker


class InProcess(Tracker):
    """Tells W&B first and writes the event then."""

    def __init__(self, run: Run, stage: str, wandb_run: Any) -> None:
        super().__init__(run, stage)
        self._wandb_run = wandb_run

    def metrics(self, values: dict[str, float], **at: float) -> None:
        """Log and record."""
        self._wandb_run.log(values, step=int(at["step"]))
        super().metrics(values, **at)


@contextmanager
def in_process(config: RunConfig, run: Run, stage: str, *, job: str = "") -> Iterator[Tracker]:
    """Takes the place of :func:`wiseft_dist.tracking.tracking`."""
    with wandb.init(
        project="peer", mode="offline", dir=str(run.path), config=config.model_dump(mode="json")
    ) as wandb_run:
        yield InProcess(run, stage, wandb_run)


if __name__ == "__main__":
    wiseft_dist.finetune.stage.tracking = in_process
    execute(sys.argv[1], Run(Path(sys.argv[2]).absolute()))
