"""Which arrays of jobs a sweep is on Slurm: one a stage over all runs that lack it, chained task by task. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Missing = tuple[tuple[str, str | None], ...]
"""What a run lacks, in order: a stage, and which of the evaluation's jobs."""


@dataclass(frozen=True)
class Array:
    """The same job of several runs; task i is that of ``runs[i]``."""

    stage: str
    part: str | None
    runs: tuple[str, ...]
    """Names of the runs."""
    after: tuple[int, ...]
    """Places in the list of arrays: its task i starts when theirs have succeeded."""
    at_once: int
    """Tasks that run at the same time."""

    @property
    def name(self) -> str:
        """``evaluate/1-of-3``."""
        return self.stage if self.part is None else f"{self.stage}/{self.part}"


def make_arrays(missing: Mapping[str, Missing], *, longest: int, at_once: int) -> list[Array]:
    """The arrays in the order in which they are submitted.

    The arrays of a chain have equal indices: runs that lack the same are together, in pieces that Slurm takes.

    Args:
        missing: What each run lacks; finished ones may be there with nothing.
        longest: Tasks that an array may have; 0 where Slurm has no arrays, and every job is one by itself.
        at_once: How many runs may be at a stage at the same time. Several chains share it by their numbers of runs;
            each has one at least.
    """
    groups: dict[Missing, list[str]] = defaultdict(list)
    for name, jobs in missing.items():
        if jobs:
            groups[jobs].append(name)
    num_runs, longest = sum(map(len, groups.values())), max(1, longest)
    arrays: list[Array] = []
    for jobs, names in groups.items():
        for start in range(0, len(names), longest):
            piece = names[start : start + longest]
            share = max(1, min(at_once, len(piece), at_once * len(piece) // num_runs))
            _add_chain(arrays, jobs, tuple(piece), share)
    return arrays


def _add_chain(arrays: list[Array], jobs: Missing, runs: tuple[str, ...], at_once: int) -> None:
    before: Sequence[int] = ()
    for stage in dict.fromkeys(stage for stage, _ in jobs):
        parts = [part for each, part in jobs if each == stage]
        first = len(arrays)
        arrays += [Array(stage, part, runs, tuple(before), at_once) for part in parts]
        before = range(first, len(arrays))
