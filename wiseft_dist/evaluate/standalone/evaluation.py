"""What an evaluation without a run has to show: its models, their cells, and the statistics of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist.commits import digest
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.standalone.given_datasets import IndexedDataset
from wiseft_dist.evaluate.standalone.model_sources import ModelSources
from wiseft_dist.evaluate.statistics.cell_source import CellSource
from wiseft_dist.evaluate.statistics.statistics import Role, Statistics, statistics

RESULTS_FILE, STATISTICS_FILE = "results.csv", "statistics.json"
"""In the output folder; both are of the last call."""
PATIENCE = 5.0
"""Seconds for which cells that other processes wrote may stay invisible: shared file systems keep listings a while."""


@dataclass(frozen=True)
class Scored:
    """A plain model or an ensemble, and its cells."""

    sources: ModelSources
    datasets: tuple[IndexedDataset, ...]
    """The reference first, then the shifts."""
    members: tuple[Member, ...]
    """In rising order of alpha, those in output space last."""
    store: CellStore
    max_bad: int
    """Samples of a dataset that may be skipped."""
    heads: Mapping[str, str]
    """Which head classifies each dataset, in words."""
    class_maps: Mapping[str, str | None]
    """By dataset, the map from the head's classes to its own; None where they are the same."""

    @property
    def missing(self) -> Iterator[str]:
        """What is not complete, in words."""
        for dataset in self.datasets:
            if left := self.store.missing(dataset.name, self.members):
                yield f"{dataset.name}: {len(left)} of {len(self.members)} cells of {self.sources.title}"

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Dataset and folder of every cell; the folder's name says what decides its numbers."""
        names = (dataset.name for dataset in self.datasets)
        return [(name, self.store.folder(name, member).name) for name in names for member in self.members]

    def statistics(self) -> Statistics:
        """Every number, from the cells.

        Raises:
            RunError: if something is missing, or too many samples were skipped.
        """
        return statistics(map(self._source, self.datasets), self.members)

    def _source(self, dataset: IndexedDataset) -> CellSource:
        role: Role = "reference" if dataset is self.datasets[0] else "shift"
        spec = dataset.dataset.spec
        class_map = self.class_maps[dataset.name]
        return CellSource(dataset.name, spec, role, self.store, self.members, self.max_bad, class_map)


@dataclass(frozen=True)
class Evaluation:
    """What one call evaluated."""

    output: Path
    scored: tuple[Scored, ...]

    @property
    def missing(self) -> list[str]:
        """What other processes have yet to finish, in words."""
        return [line for each in self.scored for line in each.missing]

    @property
    def cells_digest(self) -> str:
        """One hash for every cell of the call, in its order."""
        return digest([each.cells for each in self.scored])

    def still_missing(self) -> list[str]:
        """What is missing, looked at again for a few seconds."""
        deadline = time.monotonic() + PATIENCE
        while (left := self.missing) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left


def forget_results(output: Path) -> None:
    """Delete the files of an earlier call, before cells of this one are computed."""
    for name in (STATISTICS_FILE, RESULTS_FILE):
        (output / name).unlink(missing_ok=True)
