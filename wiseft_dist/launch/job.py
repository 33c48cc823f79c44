"""What submitit pickles: the name of a stage and a run directory, nothing about progress."""

from __future__ import annotations

from dataclasses import dataclass

import submitit

from wiseft_dist.pipeline import execute
from wiseft_dist.run import Run


@dataclass(frozen=True)
class StageJob:
    """Runs one stage; how far it is, the stage finds out from disk, so it may be started again at any time."""

    run: Run
    stage: str
    dataset: str | None = None

    def __call__(self) -> None:
        """Run the stage in this process."""
        execute(self.stage, self.run, dataset=self.dataset)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before a time limit or a preemption: come back as the same job."""
        return submitit.helpers.DelayedSubmission(self)
