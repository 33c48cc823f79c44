"""One line about the stage that is under way, for a terminal or a log."""

from __future__ import annotations

from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import TRAIN, load_manifest, sizes_to_evaluate
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import job_names, parts_of_job
from wiseft_dist.launch.pace import Pace, evaluate_pace, finetune_pace, merge_pace
from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events_from

RECENT_BYTES = 4 * 2**20
"""Of the events: some ten thousand lines."""
BRIEF_BYTES = 2**17


def progress_line(config: RunConfig, run: Run, stage: str, *, briefly: bool = False) -> str:
    """``finetune: step 40 of 100, loss 0.512, 83 samples/s, 12 min left``; empty where there is nothing to say.

    Args:
        config: The run.
        run: Its directory.
        stage: The stage.
        briefly: Only what a look at the last events tells, for a line that is renewed all the time.
    """
    try:
        if stage == "finetune":
            return _finetune(config, run, briefly=briefly)
        if briefly or stage not in ("merge", "evaluate"):
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


def duration(seconds: float) -> str:
    """``3 d 4 h``, ``1 h 12 min``, ``12 min``, ``43 s``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _finetune(config: RunConfig, run: Run, *, briefly: bool) -> str:
    events = read_events_from(run, -(BRIEF_BYTES if briefly else RECENT_BYTES))
    num_training = None if briefly else load_manifest(run, TRAIN).num_training
    pace, training = finetune_pace(config, events, num_training=num_training)
    if training.said is None:
        return ""
    loss = "" if training.loss is None else f", loss {training.loss:.3f}"
    if briefly:
        return f"step {pace.done}{loss}"
    rate = "" if training.samples_per_second is None else f", {training.samples_per_second:,.0f} samples/s"
    return f"{training.phase}: {amount(pace)}{loss}{rate}{time_left(pace.seconds_left)}"


def _evaluate(config: RunConfig, run: Run) -> Pace:
    sizes = sizes_to_evaluate(config, run)
    parts = [part for name in job_names(config, sizes) for part in parts_of_job(config, sizes, name)]
    events = read_events_from(run, -RECENT_BYTES)
    return evaluate_pace(config, run, parts, events)
