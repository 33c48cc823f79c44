"""Who scores what: datasets are cut into parts, which are dealt to jobs and to the readers of a job.

Everything here is a pure function of sizes and settings: jobs and readers need not talk to each other.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError

MIN_PART_SAMPLES = 256
"""Parts are not made smaller for the sake of more readers: each costs a start of the decoding processes."""
PARTS_A_READER = 4
"""With as many equal parts a reader, none works a quarter longer than it would in a perfect division."""


@dataclass(frozen=True)
class Part:
    """The samples of a dataset at the positions ``[start, stop)``."""

    dataset: str
    start: int
    stop: int

    @property
    def num_samples(self) -> int:
        """Its length."""
        return self.stop - self.start


def cut(sizes: Mapping[str, int], part_samples: int, *, num_readers: int = 1) -> list[Part]:
    """Cut datasets at the multiples of one length.

    While there are too few parts to keep all readers equally busy, the length is divided by its smallest factor (halved
    while it is even). Each length so divides those before it, and the parts of cuts for other numbers of readers nest:
    what is finished is found again.

    Args:
        sizes: Samples by dataset.
        part_samples: The greatest length of a part.
        num_readers: Among how many processes the parts will be dealt.
    """
    total, length = sum(sizes.values()), part_samples
    smallest = min(part_samples, MIN_PART_SAMPLES)
    while num_readers > 1 and length > smallest and length * num_readers * PARTS_A_READER > total:
        finer = length // _smallest_factor(length)
        if finer < smallest:
            break
        length = finer
    return [
        Part(name, start, min(start + length, size)) for name, size in sizes.items() for start in range(0, size, length)
    ]


def _smallest_factor(number: int) -> int:
    """Above 1; of 1 it is 1."""
    return next((factor for factor in range(2, isqrt(number) + 1) if number % factor == 0), number)


def assign(parts: Sequence[Part], num_readers: int) -> list[list[Part]]:
    """Deal parts: the longest first, each to whoever has least so far.

    The most that anyone gets is at most an equal share and one part. Source: Graham, Bounds on multiprocessing timing
    anomalies (SIAM J. Appl. Math. 17, 1969).

    Returns:
        The parts of each reader, in the order in which they were given.
    """
    place = {part: index for index, part in enumerate(parts)}
    loads = [(0, reader) for reader in range(num_readers)]
    dealt: list[list[Part]] = [[] for _ in range(num_readers)]
    for part in sorted(parts, key=lambda part: (-part.num_samples, place[part])):
        load, reader = heapq.heappop(loads)
        dealt[reader].append(part)
        heapq.heappush(loads, (load + part.num_samples, reader))
    return [sorted(each, key=place.__getitem__) for each in dealt]


def job_names(config: RunConfig, sizes: Mapping[str, int]) -> list[str]:
    """``1-of-3``, ``2-of-3``, ...: a job for every ``evaluate.job_images`` images."""
    wanted = -(-sum(sizes.values()) // config.evaluate.job_images)
    num_jobs = max(1, min(config.launch.evaluate.max_parallel, wanted))
    return [f"{number}-of-{num_jobs}" for number in range(1, num_jobs + 1)]


def parts_of_job(config: RunConfig, sizes: Mapping[str, int], name: str) -> list[Part]:
    """What one job scores.

    Args:
        config: The run.
        sizes: Samples of all its datasets.
        name: As in :func:`job_names`.

    Raises:
        UserError: if there is no such job.
    """
    match = re.fullmatch(r"(\d+)-of-(\d+)", name)
    number, num_jobs = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= num_jobs:
        raise UserError(f"{name} is not a job of the evaluation: write 1-of-3, 2-of-3 or 3-of-3.")
    num_readers = num_jobs * config.launch.evaluate.num_tasks
    return list(_dealt(tuple(sizes.items()), config.evaluate.part_samples, num_readers, num_jobs)[number - 1])


@lru_cache(maxsize=8)
def _dealt(sizes: tuple[tuple[str, int], ...], part_samples: int, num_readers: int, num_jobs: int) -> list[list[Part]]:
    """The parts of every job; whoever asks for those of each of a thousand jobs has them dealt once."""
    return assign(cut(dict(sizes), part_samples, num_readers=num_readers), num_jobs)


def images_by_dataset(parts: Sequence[Part]) -> dict[str, int]:
    """How many samples of each dataset some parts have together."""
    counts: dict[str, int] = {}
    for part in parts:
        counts[part.dataset] = counts.get(part.dataset, 0) + part.num_samples
    return counts
