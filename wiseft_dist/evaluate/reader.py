"""A reader: one process of the evaluation. It scores its parts one after the other and commits each.

Readers need not know of each other: what is committed is skipped, whoever did it, so any number of them may run at
once, one after the other, or again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from wiseft_dist.data.receipt import refuse_more
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.progress import Bar, progress_bar
from wiseft_dist.tracking import Tracker


class Score(Protocol):
    """Scores members on a part."""

    def __call__(self, part: Part, members: Sequence[Member], on_progress: Callable[[int], None]) -> Predictions:
        """What the members say about every sample of the part."""


@dataclass(frozen=True)
class Reader:
    """Scores parts and commits them."""

    store: CellStore
    members: Sequence[Member]
    max_bad: int
    """Samples of a dataset that may be skipped, over all its committed parts and this reader's."""
    tracker: Tracker
    is_main: bool = True
    """Whether it shows a progress bar: one of several processes at a terminal does."""

    def left(self, parts: Sequence[Part]) -> list[Part]:
        """Those with something to do."""
        return self.store.left(parts, self.members)

    def score(self, parts: Sequence[Part], score: Score) -> None:
        """Score and commit what is missing of some parts; each is looked at again before it is begun.

        Raises:
            RunError: if a part cannot be read, or too many samples are damaged; earlier parts are committed.
        """
        groups = [list(group) for _, group in groupby(self.left(parts), key=lambda part: part.dataset)]
        with progress_bar("evaluating", total=len(groups), unit="datasets", is_main=self.is_main) as datasets:
            for group in groups:
                num_samples = sum(part.num_samples for part in group)
                with progress_bar(group[0].dataset, total=num_samples, unit="images", is_main=self.is_main) as bar:
                    for part in group:
                        self._score_part(part, score, bar)
                datasets.advance()

    def _score_part(self, part: Part, score: Score, bar: Bar) -> None:
        missing = self.store.missing(part.dataset, self.members, part)
        if not missing:
            bar.advance(part.num_samples)
            return
        place = {"dataset": part.dataset, "start": part.start, "stop": part.stop}
        self.tracker.event("started", **place, **_alphas(missing))
        predictions = score(part, missing, bar.advance)
        for skipped in predictions.bad:
            self.tracker.event("skipped", dataset=part.dataset, sample=str(skipped))
        self._refuse_many(part, missing, predictions)
        self.store.write(part.dataset, part, missing, predictions)
        self.tracker.event("finished", **place)

    def _refuse_many(self, part: Part, members: Sequence[Member], predictions: Predictions) -> None:
        """Count what is skipped over the dataset; what others skip at this moment, the report counts."""
        if not predictions.bad:
            return
        earlier = {entry.position: entry for m in members for entry in self.store.skipped(part.dataset, m)}
        bad = list((earlier | {entry.position: entry for entry in predictions.bad}).values())
        refuse_more(bad, predictions.bad[-1], self.max_bad)


def _alphas(members: Sequence[Member]) -> dict[str, list[float]]:
    """For events: the alphas, and those of output space where there are any."""
    alphas = {space: [member.alpha for member in members if member.space == space] for space in ("weight", "output")}
    return {"alphas": alphas["weight"]} | ({"output_alphas": alphas["output"]} if alphas["output"] else {})
