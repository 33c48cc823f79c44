"""How far a stage is, how fast it goes and until when: from the end of the run's events and from what is committed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wiseft_dist.config import RunConfig
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.launch.rates import NUM_NEWEST_PARTS, scored_parts
from wiseft_dist.merge.request import missing_ensembles
from wiseft_dist.run import Run
from wiseft_dist.weights.finetuned import are_models_known

WORTH_SAYING_PERCENT = 10.0
"""Of the time: from there on waiting for data is what holds training up."""

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Pace:
    """How far a stage is."""

    done: int
    total: int | None
    """None: not known yet."""
    unit: str
    """``steps``, ``ensembles``, ``images``."""
    seconds_left: float | None = None
    """At the rate of the newest session; None where nothing tells."""


@dataclass(frozen=True)
class Training:
    """What fine-tuning last said about itself; None for what it has not said."""

    phase: str
    """``finetune``; ``linear_head`` in the first training of ``lp_ft``."""
    step: int = 0
    epoch: float | None = None
    epochs: float | None = None
    loss: float | None = None
    validation_accuracy: float | None = None
    """On the held-out piece of the training set, 0 to 1."""
    samples_per_second: float | None = None
    data_wait_percent: float | None = None
    """Of the time, of the rank that waited longest."""
    bottleneck: str | None = None
    """What held the newest session up, and what to do about it."""
    said: float | None = None
    """When it said so: seconds since 1970."""


def finetune_pace(config: RunConfig, events: Events, *, num_training: int | None) -> tuple[Pace, Training]:
    """Of the training that is under way, or was last.

    Args:
        config: The run.
        events: The newest ones, oldest first.
        num_training: Samples of an epoch, where known.
    """
    phases = ("linear_head", "finetune") if config.finetune.recipe == "lp_ft" else ("finetune",)
    own = [event for event in events if event.get("stage") in phases and "alpha" not in event]
    phase = next((event["stage"] for event in reversed(own) if "step" in event), phases[0])
    own = [event for event in own if event["stage"] == phase]
    session, started = _session(own)
    metrics = [event for event in session if event.get("event") == "metrics" and "samples_per_second" in event]
    newest = metrics[-1] if metrics else {}
    step = int(newest.get("step", started.get("step", 0)))
    settings = config.finetune.head if phase == "linear_head" else config.finetune
    training = Training(
        phase=phase,
        step=step,
        epoch=step * settings.global_batch_size / num_training if num_training else None,
        epochs=settings.epochs,
        loss=next((event["loss"] for event in reversed(metrics) if "loss" in event), None),
        validation_accuracy=next((event["id_val/top1"] for event in reversed(own) if "id_val/top1" in event), None),
        samples_per_second=newest.get("samples_per_second"),
        data_wait_percent=newest.get("data_wait_percent"),
        bottleneck=next((event["summary"] for event in reversed(session) if event.get("event") == "bottleneck"), None),
        said=newest.get("time"),
    )
    total = started.get("total_steps") or _planned_steps(config, phase, num_training)
    return Pace(step, total, "steps", _seconds_left(metrics, total)), training


def merge_pace(config: RunConfig, run: Run) -> Pace:
    """Ensembles of one call are finished together, so nothing is said about how long it takes."""
    num_all = len(config.merge.alphas)
    left = len(missing_ensembles(config, run)) if are_models_known(config, run) else num_all
    return Pace(num_all - left, num_all, "ensembles")


def evaluate_pace(config: RunConfig, run: Run, parts: Collection[Part], events: Events) -> Pace:
    """Images that every ensemble has scored; the rate is that of the parts that were committed last."""
    total = sum(part.num_samples for part in parts)
    if not are_models_known(config, run):
        return Pace(0, total, "images")
    left = sum(part.num_samples for part in CellStore.of_run(config, run).left(parts, members_of(config)))
    rate = _images_per_second(events)
    return Pace(total - left, total, "images", left / rate if rate and left else None)


def _images_per_second(events: Events) -> float | None:
    """From the first start of the newest finished parts until now, all readers together."""
    newest = scored_parts(events)[-NUM_NEWEST_PARTS:]
    seconds = time.time() - min((part.began for part in newest), default=time.time())
    return sum(part.num_images for part in newest) / seconds if seconds > 0 else None


def _session(own: Events) -> tuple[Events, Mapping[str, Any]]:
    """The newest session's events, and its start; an empty one where that is longer ago than the events reach."""
    for index in range(len(own) - 1, -1, -1):
        if own[index].get("event") == "started":
            return own[index:], own[index]
    return own, {}


def _planned_steps(config: RunConfig, phase: str, num_training: int | None) -> int | None:
    from wiseft_dist.finetune.schedule import total_steps

    return total_steps(config, num_training) if phase == "finetune" and num_training else None


def _seconds_left(metrics: Events, total: int | None) -> float | None:
    """From the first to the newest line of the session, pauses included; of one line, what that says."""
    if not metrics:
        return None
    first, newest = metrics[0], metrics[-1]
    since = time.time() - float(newest["time"])
    if total is not None and newest["step"] > first["step"]:
        rate = float(newest["time"] - first["time"]) / (newest["step"] - first["step"])
        left_at_that_rate: float = (total - newest["step"]) * rate - since
        return max(0.0, left_at_that_rate)
    left: float | None = newest.get("eta_seconds")
    return None if left is None else max(0.0, left - since)
