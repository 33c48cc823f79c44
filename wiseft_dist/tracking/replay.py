"""From a run's events to what W&B shows of them. The live mirror and `wiseft sync` are this, over the same events.

A stage that is killed and resumed logs some steps again. W&B takes each step of a run once, in rising order: here all
events of a step become one row, and a step that was told stays as it was told first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

TRAININGS = ("linear_head", "finetune")
STAGES = (*TRAININGS, "merge", "evaluate", "report")
SYSTEM = "system/"
"""What names of the machine's own metrics begin with; they stay as they are."""
ABOUT_THE_EVENT = ("time", "stage", "job", "event", "step", "alpha")
BYTES_PER_GB = 1e9
NOBODYS_FAULT = ("KeyboardInterrupt", "SystemExit", "StageTakenError")
"""Ends of a stage that somebody asked for: no alert."""


@dataclass(frozen=True)
class Row:
    """A line of W&B's history."""

    step: int
    """W&B's own ``_step``: rising within a W&B run. Of trainings, our step."""
    values: dict[str, float | str]
    time: float | None = None
    """When the first of it was told, in seconds since 1970."""


@dataclass(frozen=True)
class Summary:
    """Final or running totals; told again, they are the same or newer."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Alert:
    """A message to the people who watch."""

    title: str
    text: str
    level: Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True)
class Preempting:
    """The stage's Slurm job is about to be requeued."""


@dataclass(frozen=True)
class Report:
    """The report is written: what it shows comes from its files (:mod:`wiseft_dist.tracking.shown_report`)."""


Item = Row | Summary | Alert | Preempting | Report


def wandb_runs(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Every (stage, job) of which there is something to show, in the order of their beginnings."""
    shown: dict[tuple[str, str], None] = {}
    for event in events:
        names = ("finished",) if event.get("stage") == "report" else ("started", "metrics", "summary", "tried")
        if event.get("stage") in STAGES and event.get("event") in names:
            shown.setdefault((str(event["stage"]), str(event.get("job") or "")))
    return list(shown)


class Replay:
    """What one W&B run shows: feed it every event of the run from the first on.

    Args:
        stage: The events' stage.
        job: Which job of it: ``1-of-3`` of an evaluation, empty where the stage is one.
        after: The last step that W&B holds already; rows up to it are not told again.
    """

    def __init__(self, stage: str, job: str = "", *, after: int = -1) -> None:
        self._stage, self._job, self._after = stage, job, after
        self._told = -1
        self._waiting: dict[int, Row] = {}
        self._next_row = 0
        self._begun: dict[tuple[Any, ...], float] = {}
        self._counts: dict[str, float] = {}

    def feed(self, event: Mapping[str, Any]) -> Iterator[Item]:
        """What an event adds, which may be nothing yet; events of other stages and jobs add nothing."""
        if event.get("event") == "preempting" and self._is_of_this_process(event):
            yield Preempting()
        if event.get("stage") != self._stage or str(event.get("job") or "") != self._job:
            return
        if event.get("event") == "failed":
            yield from self._failed(event)
        elif event.get("event") == "attempt":
            yield self._count("attempts")
        elif self._stage in TRAININGS:
            yield from self._training(event)
        elif self._stage == "merge":
            yield from self._merge(event)
        elif self._stage == "evaluate":
            yield from self._evaluate(event)
        elif self._stage == "report" and event.get("event") == "finished":
            yield Report()
            yield Alert("finished", "The run is finished and its report is written.", "INFO")

    def flush(self) -> Iterator[Item]:
        """The rows that still wait for more of their step: nothing more comes.

        Not to be called for a training that will go on: its last step may have been cut off in the middle, and what is
        told of a step stays.
        """
        for step in sorted(self._waiting):
            yield from self._tell(self._waiting.pop(step))

    def _is_of_this_process(self, event: Mapping[str, Any]) -> bool:
        """Whether the stage of Slurm's job is this one, or has it within: a first training, or the choice of a soup."""
        stage = "finetune" if self._stage in TRAININGS else self._stage
        return event.get("stage") == stage and (stage != "evaluate" or str(event.get("job") or "") == self._job)

    def _failed(self, event: Mapping[str, Any]) -> Iterator[Item]:
        if event.get("kind") in NOBODYS_FAULT:
            return
        of_dataset = f" of {event['dataset']}" if event.get("dataset") else ""
        name = self._stage + (f" {self._job}" if self._job else "") + of_dataset
        yield Alert(f"{name} failed", f"{event.get('kind')}: {event.get('error')}", "ERROR")

    def _training(self, event: Mapping[str, Any]) -> Iterator[Item]:
        name = event.get("event")
        if name == "metrics" and isinstance(event.get("step"), int):
            yield from self._earlier_than(event["step"])
            self._add(event["step"], event)
        elif name == "summary":
            yield Summary(self._named(event))
        elif name == "bottleneck":
            yield Summary({f"{self._stage}/bottleneck": str(event.get("summary"))})
        elif name == "bad_step":
            yield self._count("bad_steps")
        elif name == "finished":
            yield from self.flush()

    def _earlier_than(self, step: int) -> Iterator[Item]:
        for earlier in sorted(waiting for waiting in self._waiting if waiting < step):
            yield from self._tell(self._waiting.pop(earlier))

    def _add(self, step: int, event: Mapping[str, Any]) -> None:
        """Put an event with the others of its step; what was told first stays."""
        if step <= self._told:
            return
        known = self._waiting.get(step, Row(step, {"step": step}))
        self._waiting[step] = Row(step, self._named(event) | known.values, known.time or event.get("time"))

    def _tell(self, row: Row) -> Iterator[Row]:
        self._told = row.step
        if row.step > self._after:
            yield row

    def _named(self, event: Mapping[str, Any]) -> dict[str, float | str]:
        """The event's values under W&B's names: ``finetune/loss``, ``system/cpu_percent``."""
        return {
            key if key.startswith(SYSTEM) else f"{self._stage}/{key}": value
            for key, value in event.items()
            if key not in ABOUT_THE_EVENT and isinstance(value, float | int | str)
        }

    def _merge(self, event: Mapping[str, Any]) -> Iterator[Item]:
        """Of a merge its size and pace; of a greedy soup each trial and the choice."""
        if event.get("event") == "finished" and "seconds" in event:
            seconds, size = float(event["seconds"]), float(event.get("bytes", 0)) / BYTES_PER_GB
            values = {"merge/ensembles": len(event.get("alphas", ())), "merge/seconds": seconds, "merge/gb": size}
            yield from self._row(event, values | ({"merge/gb_per_second": size / seconds} if seconds else {}))
        elif event.get("event") == "tried":
            values = {"soup/accuracy": event["accuracy"], "soup/models": len(event["models"])}
            yield from self._row(event, values)
        elif event.get("event") == "chosen":
            yield Summary({"soup/chosen": [str(name) for name in event["models"]]})

    def _evaluate(self, event: Mapping[str, Any]) -> Iterator[Item]:
        """How many images of each dataset are scored, and how fast."""
        place = tuple(event.get(key) for key in ("dataset", "start", "stop"))
        if event.get("event") == "skipped":
            yield self._count("skipped")
        if None in place:
            return
        if event.get("event") == "started":
            self._begun[place] = float(event.get("time", 0))
        elif event.get("event") == "finished":
            images, began = event["stop"] - event["start"], self._begun.pop(place, None)
            values = {"evaluate/images": self._add_up("images", images)}
            values[f"evaluate/{event['dataset']}/images"] = self._add_up(f"images of {event['dataset']}", images)
            if began is not None and event.get("time", 0) > began:
                values["evaluate/images_per_second"] = images / (event["time"] - began)
            yield from self._row(event, values)

    def _row(self, event: Mapping[str, Any], values: Mapping[str, float]) -> Iterator[Row]:
        """A row of its own: of stages that have no steps, the rows are counted."""
        step, self._next_row = self._next_row, self._next_row + 1
        yield from self._tell(Row(step, {"step": step, **values}, event.get("time")))

    def _count(self, name: str) -> Summary:
        return Summary({f"{self._stage}/{name}": self._add_up(name, 1)})

    def _add_up(self, name: str, number: float) -> float:
        self._counts[name] = self._counts.get(name, 0) + number
        return self._counts[name]
