"""The order of training samples as arithmetic: which sample comes next is a function of (seed, epoch, position).

The stream of samples is endless: position ``p`` belongs to epoch ``p // N``. It is woven from a fixed number of
lanes, position ``p`` from lane ``p % lanes``. In each epoch the shards are permuted, their samples laid end to end
and cut into one stretch a lane, exactly as long as the lane's positions in that epoch; inside a lane, samples are
permuted within blocks of ``block_samples``, which is what a reader holds in memory.

Rank ``r`` of ``W`` takes the positions ``p % W == r``. Because ``W`` divides the number of lanes, each lane is read by
one rank, whatever ``W`` is; resuming needs nothing but a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np


@dataclass(frozen=True)
class Stretch:
    """Consecutive trainable samples of one shard."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        """Samples in the stretch."""
        return self.stop - self.start


@dataclass(frozen=True)
class SampleOrder:
    """The order of a dataset whose shard ``i`` holds ``counts[i]`` trainable samples."""

    counts: tuple[int, ...]
    seed: int
    lanes: int
    block_samples: int

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

    def stretches(self, epoch: int, lane: int, start: int = 0) -> Iterator[Stretch]:
        """The lane's samples of an epoch in the order in which they are read, without the first ``start``."""
        shards, ends = _epoch_layout(self.counts, self.seed, epoch)
        low = self._lane_start(epoch, lane)
        begin, stop = low + start, low + self.lane_length(epoch, lane)
        place = int(np.searchsorted(ends, begin, side="right"))
        while begin < stop:
            shard, end = int(shards[place]), int(ends[place])
            offset = begin - (end - self.counts[shard])
            upto = min(end, stop)
            if begin < upto:
                yield Stretch(shard, offset, offset + upto - begin)
            begin, place = upto, place + 1

    def block(self, epoch: int, lane: int, index: int) -> np.ndarray:
        """The order in which a block's samples come.

        Returns:
            A permutation of the samples as they are read, int64 ``[samples]``; empty behind the lane's last block.
        """
        size = min(self.block_samples, self.lane_length(epoch, lane) - index * self.block_samples)
        return _generator(self.seed, _mix(epoch, lane, index)).permutation(max(0, size))

    def _lane_start(self, epoch: int, lane: int) -> int:
        """Samples of the epoch in the lanes before this one."""
        start = epoch * self.num_samples
        stop = start + self.num_samples
        full_weaves = stop // self.lanes - start // self.lanes
        return full_weaves * lane + min(stop % self.lanes, lane) - min(start % self.lanes, lane)


def shard_order(num_shards: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the shards.

    Every rank computes the same permutation, so dealing shards to ranks needs no message.

    Returns:
        Shard indices, shape ``[num_shards]``, int64.
    """
    return _generator(seed, epoch).permutation(num_shards)


def sample_generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one sample's augmentation: the same in every worker, rank and resumed run."""
    return _generator(seed ^ 0x5EED, position)


def _generator(seed: int, stream: int) -> np.random.Generator:
    """Random numbers of their own for each pair of unsigned 64-bit numbers; numpy would round a plain list of them."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


@lru_cache(maxsize=4)
def _epoch_layout(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards of an epoch in order, and the sample number at which each ends; both int64 ``[shards]``."""
    shards = shard_order(len(counts), seed=seed, epoch=epoch)
    return shards, np.cumsum(np.asarray(counts, dtype=np.int64)[shards])


def _count_below(position: int, lane: int, lanes: int) -> int:
    """How many positions p < ``position`` have ``p % lanes == lane``."""
    return (position - lane + lanes - 1) // lanes


def _mix(epoch: int, lane: int, block: int) -> int:
    """One 64-bit key for a block, apart from the keys of whole epochs."""
    return (1 << 63) | (epoch & 0xFFFF) << 47 | (lane & 0xFFFF) << 31 | (block & 0x7FFFFFFF)
