"""What happened, and when: ``events.jsonl`` is the truth, Weights & Biases mirrors it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.run import Run, digest
from wiseft_dist.tracking.events import append_event


class Tracker:
    """Appends events of one stage to the run's ``events.jsonl`` and mirrors metrics to W&B."""

    def __init__(self, run: Run, stage: str, mirror: Any = None) -> None:
        self._file, self._stage, self._mirror = run.events_file, stage, mirror

    def event(self, name: str, **values: Any) -> None:
        """Record that something happened: ``started``, ``finished``, ``failed``."""
        append_event(self._file, stage=self._stage, event=name, **values)

    def metrics(self, values: dict[str, float], **at: float) -> None:
        """Record numbers at a place on their axis: ``step=10`` or ``alpha=0.5``."""
        append_event(self._file, stage=self._stage, event="metrics", **at, **values)
        if self._mirror is not None:
            self._mirror.log({f"{self._stage}/{key}": value for key, value in values.items()} | at)

    def summary(self, values: dict[str, float]) -> None:
        """Record final numbers."""
        append_event(self._file, stage=self._stage, event="summary", **values)
        if self._mirror is not None:
            self._mirror.summary.update(values)

    def image(self, name: str, path: Path) -> None:
        """Show a picture in W&B; the file itself stays where it is."""
        if self._mirror is not None:
            import wandb

            self._mirror.log({name: wandb.Image(str(path))})


@contextmanager
def tracking(config: RunConfig, run: Run, stage: str, *, job: str = "") -> Iterator[Tracker]:
    """A tracker for a stage, for the one process that writes; ``job`` tells parallel jobs of a stage apart."""
    try:
        mirror = _start_mirror(config, run, stage, job)
    except Exception as error:  # W&B is a mirror: whatever is wrong with it must not stop the work
        append_event(run.events_file, stage=stage, event="warning", warning=f"W&B did not start: {error}")
        print(f"wiseft: W&B did not start, the run goes on without it: {error}", file=sys.stderr)
        mirror = None
    tracker = Tracker(run, stage, mirror)
    try:
        yield tracker
    except BaseException:
        if mirror is not None:
            mirror.finish(exit_code=1)
        raise
    if mirror is not None:
        mirror.finish()


def wandb_mode(config: WandbConfig) -> str:
    """The mode in force: the configured one, else ``WANDB_MODE``, else online only where a key is set."""
    if config.mode is not None:
        return config.mode
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


def _start_mirror(config: RunConfig, run: Run, stage: str, job: str) -> Any:
    mode: Any = wandb_mode(config.wandb)
    if mode == "disabled":
        return None
    import wandb

    # The id comes from the run directory, so a requeued job goes on in the same W&B run.
    identity = digest([str(run.path), stage, job])
    mirror = wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity,
        mode=mode,
        id=identity,
        resume="allow" if mode == "online" else None,
        name="-".join(filter(None, [run.path.name, stage, job])),
        group=run.path.name,
        job_type=stage,
        dir=str(run.path),
        config=config.model_dump(mode="json", exclude={"output", "launch"}),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_meta=True),
    )
    mirror.define_metric("finetune/*", step_metric="step")
    mirror.define_metric("report/*", step_metric="alpha")
    return mirror
