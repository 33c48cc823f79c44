"""The order of training samples as arithmetic: which sample comes next is a function of (seed, epoch, position).

The stream of samples is endless: position ``p`` belongs to epoch ``p // N``. It is woven from a fixed number of
lanes, position ``p`` from lane ``p % lanes``. In each epoch the shards are permuted, their samples laid end to end
and cut into one stretch a lane, exactly as long as the lane's positions in that epoch; inside a lane, samples are
permuted within blocks of a few shards, which is what a reader holds in memory.

Rank ``r`` of ``W`` takes the positions ``p % W == r``. Because ``W`` divides the number of lanes, each lane is read by
one rank, whatever ``W`` is; resuming needs nothing but a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Stretch:
    """Consecutive trainable samples of one shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """A few stretches and the order in which their samples come."""

    stretches: tuple[Stretch, ...]
    order: np.ndarray
    """Permutation of the concatenated stretches, int64 ``[samples]``."""

    def samples(self) -> Iterator[tuple[int, int]]:
        """(shard, index among the shard's trainable samples), in order."""
        shards = np.concatenate([np.full(s.stop - s.start, s.shard) for s in self.stretches])
        indices = np.concatenate([np.arange(s.start, s.stop) for s in self.stretches])
        for position in self.order:
            yield int(shards[position]), int(indices[position])


@dataclass(frozen=True)
class SampleOrder:
    """The order of a dataset whose shard ``i`` holds ``counts[i]`` trainable samples."""

    counts: tuple[int, ...]
    seed: int
    lanes: int
    block_shards: int

    @cached_property
    def num_samples(self) -> int:
        """Samples an epoch."""
        return sum(self.counts)

    def lane_length(self, epoch: int, lane: int) -> int:
        """How many positions of the epoch belong to the lane."""
        start = epoch * self.num_samples
        return _count_below(start + self.num_samples, lane, self.lanes) - _count_below(start, lane, self.lanes)

    def lane_offset(self, position: int, lane: int) -> tuple[int, int]:
        """The epoch of a position, and how many samples of the epoch the lane has given before it."""
        epoch = position // self.num_samples
        before = _count_below(epoch * self.num_samples, lane, self.lanes)
        return epoch, _count_below(position, lane, self.lanes) - before

    def blocks(self, epoch: int, lane: int) -> Iterator[Block]:
        """The blocks of a lane in an epoch, in the order in which they are read."""
        stretches = self._lane_stretches(epoch, lane)
        for index in range(0, len(stretches), self.block_shards):
            members = tuple(stretches[index : index + self.block_shards])
            size = sum(stretch.stop - stretch.start for stretch in members)
            random = np.random.Generator(np.random.Philox(key=[self.seed, _mix(epoch, lane, index)]))
            yield Block(members, random.permutation(size))

    def _lane_stretches(self, epoch: int, lane: int) -> list[Stretch]:
        shards = shard_order(len(self.counts), seed=self.seed, epoch=epoch)
        ends = np.cumsum([self.counts[shard] for shard in shards])
        start = sum(self.lane_length(epoch, before) for before in range(lane))
        stop = start + self.lane_length(epoch, lane)
        stretches = []
        for shard, end in zip(shards, ends, strict=True):
            begin = end - self.counts[shard]
            low, high = max(start, begin) - begin, min(stop, end) - begin
            if low < high:
                stretches.append(Stretch(int(shard), int(low), int(high)))
        return stretches


def shard_order(num_shards: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the shards.

    Every rank computes the same permutation, so dealing shards to ranks needs no message.

    Returns:
        Shard indices, shape ``[num_shards]``, int64.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_shards)


def sample_generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one sample's augmentation: the same in every worker, rank and resumed run."""
    return np.random.Generator(np.random.Philox(key=[seed ^ 0x5EED, position]))


def _count_below(position: int, lane: int, lanes: int) -> int:
    """How many positions p < ``position`` have ``p % lanes == lane``."""
    return (position - lane + lanes - 1) // lanes


def _mix(epoch: int, lane: int, block: int) -> int:
    """One 64-bit key for a block, apart from the keys of whole epochs."""
    return (1 << 63) | (epoch << 40) | (lane << 24) | block
