"""One line about the stage that is under way, for a terminal or a log."""

from __future__ import annotations

import math

from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import TRAIN, load_manifest, sizes_to_evaluate
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import job_names, parts_of_job
from wiseft_dist.launch.pace import Pace, Training, evaluate_pace, finetune_pace, merge_pace
from wiseft_dist.progress import duration
from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events_from

RECENT_BYTES = 4 * 2**20
"""Of the events: some ten thousand lines."""


def progress_line(config: RunConfig, run: Run, stage: str) -> str:
    """``finetune: step 40 of 100, epoch 2 of 5, loss 0.512, 83 samples/s, 12 min left``; empty with nothing to say."""
    try:
        if stage == "finetune":
            return _finetune(config, run)
        if stage not in ("merge", "evaluate"):
            return ""
        pace = merge_pace(config, run) if stage == "merge" else _evaluate(config, run)
        return f"{stage}: {amount(pace)}{time_left(pace.seconds_left)}"
    except (UserError, RunError, OSError, ValueError, LookupError):
        return ""  # only a line for whoever watches


def amount(pace: Pace) -> str:
    """``step 40 of 100``, ``3 of 11 ensembles``."""
    total = "?" if pace.total is None else f"{pace.total:,}"
    if pace.unit == "steps":
        return f"step {pace.done:,} of {total}"
    return f"{pace.done:,} of {total} {pace.unit}"


def time_left(seconds: float | None) -> str:
    """``, 12 min left``."""
    return "" if seconds is None else f", {duration(seconds)} left"


def _finetune(config: RunConfig, run: Run) -> str:
    events, num_training = read_events_from(run, -RECENT_BYTES), load_manifest(run, TRAIN).num_training
    pace, training = finetune_pace(config, events, num_training=num_training)
    if training.said is None:
        return ""
    loss = "" if training.loss is None else f", loss {training.loss:.3f}"
    rate = "" if training.samples_per_second is None else f", {training.samples_per_second:,.0f} samples/s"
    return f"{training.phase}: {amount(pace)}{_epoch(training)}{loss}{rate}{time_left(pace.seconds_left)}"


def _epoch(training: Training) -> str:
    """The one that is under way: ``, epoch 2 of 5``."""
    if training.epoch is None or training.epochs is None:
        return ""
    return f", epoch {min(math.ceil(training.epoch) or 1, math.ceil(training.epochs))} of {training.epochs:g}"


def _evaluate(config: RunConfig, run: Run) -> Pace:
    sizes = sizes_to_evaluate(config, run)
    parts = [part for name in job_names(config, sizes) for part in parts_of_job(config, sizes, name)]
    events = read_events_from(run, -RECENT_BYTES)
    return evaluate_pace(config, run, parts, events)
