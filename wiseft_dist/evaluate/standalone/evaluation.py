"""What an evaluation without a run has to show: its models, their cells, and the statistics of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.standalone.given_datasets import IndexedDataset
from wiseft_dist.evaluate.standalone.model_sources import ModelSources
from wiseft_dist.evaluate.statistics.cell_source import CellSource
from wiseft_dist.evaluate.statistics.statistics import Role, Statistics, statistics


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

    @property
    def missing(self) -> Iterator[str]:
        """What is not complete, in words."""
        for dataset in self.datasets:
            if left := self.store.missing(dataset.name, self.members):
                yield f"{dataset.name}: {len(left)} of {len(self.members)} cells of {self.sources.title}"

    def statistics(self) -> Statistics:
        """Every number, from the cells.

        Raises:
            RunError: if something is missing, or too many samples were skipped.
        """
        return statistics(map(self._source, self.datasets), self.members)

    def _source(self, dataset: IndexedDataset) -> CellSource:
        role: Role = "reference" if dataset is self.datasets[0] else "shift"
        spec = dataset.dataset.spec
        return CellSource(dataset.name, spec, role, self.store, self.members, self.max_bad)


@dataclass(frozen=True)
class Evaluation:
    """What one call evaluated."""

    output: Path
    scored: tuple[Scored, ...]

    @property
    def missing(self) -> list[str]:
        """What other processes have yet to finish, in words."""
        return [line for each in self.scored for line in each.missing]
