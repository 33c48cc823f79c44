"""How a stage tells what happens: events, and nothing else. W&B is shown them by another process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.errors import UserError
from wiseft_dist.run import Run
from wiseft_dist.tracking.events import append_event

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""What W&B takes for ``WANDB_MODE``; ``run`` and ``dryrun`` are its older words."""
SHOWN = "_is_shown_in_wandb"
"""Marks an error of which W&B was told."""


class Tracker:
    """Appends events of one stage (or job of it) to the run's ``events.jsonl``.

    Args:
        run: The run.
        stage: The events' stage.
        job: Which job of it, where there are several: ``1-of-3``.
    """

    def __init__(self, run: Run, stage: str, job: str = "") -> None:
        self._file = run.events_file
        self._of: dict[str, Any] = {"stage": stage} | ({"job": job} if job else {})

    def event(self, name: str, **values: Any) -> None:
        """Record that something happened: ``started``, ``finished``, ``failed``."""
        append_event(self._file, **self._of, event=name, **values)

    def metrics(self, values: dict[str, float], **at: float) -> None:
        """Record numbers at a place on their axis: ``step=10`` or ``alpha=0.5``."""
        self.event("metrics", **at, **values)

    def summary(self, values: dict[str, float]) -> None:
        """Record final numbers."""
        self.event("summary", **values)


@contextmanager
def tracking(config: RunConfig, run: Run, stage: str, *, job: str = "") -> Iterator[Tracker]:
    """A tracker for a stage, for the one process that writes; while it is entered, W&B is shown what is told.

    Whatever is wrong with W&B is said once and stops nothing. The end waits for it ``wandb.finish_seconds`` at most.

    Args:
        config: The run's.
        run: The run.
        stage: The stage.
        job: Tells parallel jobs of a stage apart.
    """
    mirror = _start_mirror(config, run, stage, job)
    try:
        yield Tracker(run, stage, job)
    except (KeyboardInterrupt, SystemExit):
        if mirror is not None:
            mirror.end("stopped")
        raise
    except BaseException as error:
        if mirror is not None:
            setattr(error, SHOWN, True)
            mirror.end("failed", error)
        raise
    if mirror is not None:
        mirror.end("finished")


def tell_failure(config: RunConfig, run: Run, stage: str, job: str, error: BaseException) -> None:
    """Send the message about a stage that failed before W&B was shown anything of it; only online, and if wanted.

    Args:
        config: The run's.
        run: The run.
        stage: The stage.
        job: Which job of it.
        error: What made it fail; nothing is sent if :func:`tracking` has seen it.
    """
    if isinstance(error, KeyboardInterrupt) or any(getattr(each, SHOWN, False) for each in _with_causes(error)):
        return
    with suppress(UserError):  # the mode: it may be what has failed
        if config.wandb.alerts and wandb_mode(config.wandb) == "online":
            mirror = _start_mirror(config, run, stage, job)
            if mirror is not None:
                mirror.end("failed", error)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def wandb_mode(config: WandbConfig) -> Mode:
    """The mode in force: the configured one, else ``WANDB_MODE``, else online only where a key is set.

    Raises:
        UserError: if ``WANDB_MODE`` is none of them.
    """
    if config.mode is not None:
        return config.mode
    word = os.environ.get("WANDB_MODE")
    if not word:
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if word not in MODES:
        raise UserError(f"WANDB_MODE is {word!r}: set it to online, offline or disabled, or unset it.")
    return MODES[word]


def _start_mirror(config: RunConfig, run: Run, stage: str, job: str) -> Any:
    mode = wandb_mode(config.wandb)
    if mode == "disabled":
        return None
    from wiseft_dist.tracking.mirror_process import MirrorProcess, warn

    try:
        return MirrorProcess(run, stage, job, mode=mode, finish_seconds=config.wandb.finish_seconds)
    except OSError as error:  # no memory or no process left for it
        warn(run, stage, job, str(error))
        return None
