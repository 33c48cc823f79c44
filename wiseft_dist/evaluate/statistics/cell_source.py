"""A dataset as statistics ask for it: its predictions are read from cells when it is its turn."""

from __future__ import annotations

from dataclasses import dataclass

from wiseft_dist.config import DatasetSpec
from wiseft_dist.data.receipt import refuse_more
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.statistics.statistics import Role


@dataclass(frozen=True)
class CellSource:
    """One dataset, and where its cells are."""

    name: str
    spec: DatasetSpec
    role: Role
    store: CellStore
    members: tuple[Member, ...]
    """In rising order of alpha, those in output space last."""
    max_bad: int
    """Samples that may have been skipped: each reader counted only what it saw itself."""
    class_map: str | None = None
    """The map from the head's classes to the dataset's; None where they are the same."""

    def load(self) -> Predictions:
        """What all members said.

        Raises:
            RunError: if a sample is missing or comes twice, or more were skipped than may be.
        """
        predictions = self.store.read(self.name, self.members)
        if predictions.bad:
            refuse_more(list(predictions.bad), predictions.bad[-1], self.max_bad)
        return predictions
