"""How fast a run has been, to tell how long another will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.run import Run
from wiseft_dist.tracking import read_events

NUM_NEWEST_PARTS = 64
"""Parts of the evaluation whose time tells how fast it goes."""


@dataclass(frozen=True)
class Rates:
    """What is known; None for what is not."""

    samples_per_second: float | None = None
    """Of training, all ranks of the plan together."""
    training_source: str | None = None
    """Who says so."""
    predictions_per_second: float | None = None
    """Of one process of the evaluation: images times the models that score each."""
    scoring_source: str | None = None


UNKNOWN = Rates()


def known_rates(config: RunConfig, run: Run, rate: float | None, rate_from: Path | None) -> Rates:
    """What a run has measured, for the ranks of this configuration.

    Args:
        config: The run to plan.
        run: The same; it tells the rates of its own earlier jobs.
        rate: Training samples a second, all ranks together; it counts more than what a run has measured.
        rate_from: The directory of another run that tells the rates.

    Raises:
        UserError: if ``rate_from`` has measured none.
    """
    source = run if rate_from is None else Run(rate_from.absolute())
    events, num_ranks = read_events(source), config.launch.finetune.num_tasks
    training, scoring = _training_rate(events, num_ranks), scoring_rate(events)
    if rate_from is not None and training is None and scoring is None:
        raise UserError(f"--rate-from: {rate_from} has no measured rate: it has logged neither training nor scoring.")
    told = None if training is None else f"{source.path}, each of {num_ranks} ranks as fast as one there"
    if rate is not None:
        training, told = rate, "--rate"
    return Rates(training, told, scoring, None if scoring is None else str(source.path))


@dataclass(frozen=True)
class ScoredPart:
    """A part of the evaluation that one process has scored."""

    num_images: int
    num_members: int
    """Models that scored each image."""
    began: float
    """Seconds since 1970."""
    ended: float


def scored_parts(events: Sequence[Mapping[str, Any]]) -> list[ScoredPart]:
    """Those that some events tell of, from start to end, in the order of their ends."""
    begun: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    parts: list[ScoredPart] = []
    for event in events:
        if event.get("stage") != "evaluate" or "start" not in event:
            continue
        place = (event.get("dataset"), event["start"], event["stop"])
        if event.get("event") == "started":
            begun[place] = event
        elif event.get("event") == "finished" and place in begun:
            start = begun.pop(place)
            num_members = len(start.get("alphas", ())) + len(start.get("output_alphas", ()))
            parts.append(ScoredPart(event["stop"] - event["start"], num_members, start["time"], event["time"]))
    return parts


def scoring_rate(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Predictions a second of one process, over the parts of the evaluation that were finished last."""
    newest = scored_parts(events)[-NUM_NEWEST_PARTS:]
    seconds = sum(part.ended - part.began for part in newest)
    return sum(part.num_images * part.num_members for part in newest) / seconds if seconds > 0 else None


def _training_rate(events: Sequence[Mapping[str, Any]], num_ranks: int) -> float | None:
    measured = [event for event in events if _tells_rate(event)]
    if not measured:
        return None
    a_device = measured[-1].get("samples_per_second_per_device")
    return float(a_device * num_ranks if a_device else measured[-1]["samples_per_second"])


def _tells_rate(event: Mapping[str, Any]) -> bool:
    return event.get("stage") == "finetune" and isinstance(event.get("samples_per_second"), int | float)
