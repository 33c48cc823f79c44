"""Training batches without end, resumable at any position."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
from torch.utils.data import IterableDataset

from wiseft_dist.data.batch import Batch, Target, stack_targets
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.order import SampleOrder, sample_generator
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.data.shards import Cache, Sample, read_samples
from wiseft_dist.data.tar import IMAGE_FIELDS
from wiseft_dist.data.workers import PixelRing, error_as_last_item, loaded, this_worker
from wiseft_dist.errors import RunError

MAX_CONSECUTIVE_BAD = 64
"""Damaged samples in a row after which a lane is given up."""


class TrainingTransform(Protocol):
    """From an encoded picture to pixels."""

    @property
    def size(self) -> int:
        """Height and width of the result."""

    def __call__(self, data: bytes, out: np.ndarray, random: np.random.Generator) -> None:
        """Write uint8 ``[size, size, 3]`` to ``out``; ValueError if the picture does not decode."""


def sample_order(manifest: Manifest, *, seed: int, lanes: int, block_samples: int) -> SampleOrder:
    """The training order of a manifest: held-out samples are not in it."""
    return SampleOrder(tuple(manifest.training_counts.tolist()), seed, lanes, block_samples)


@dataclass(frozen=True)
class TrainStream:
    """Everything that decides which training batches come, and how they look."""

    manifest: Manifest
    order: SampleOrder
    transform: TrainingTransform
    target: Target
    global_batch_size: int
    cache: Cache | None = None

    def batches(
        self, *, first_step: int, rank: int, world_size: int, num_workers: int, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """This rank's share of each global batch from ``first_step`` on, without end.

        Step ``s`` holds the positions ``[s B, (s + 1) B)``; the rank's are those with ``position % W == rank``. The
        number of workers changes who decodes a sample, never where it stands. A sample that cannot be used is
        reported in the batch, and the lane's next good one stands in for it.
        """
        lanes = range(rank, self.order.lanes, world_size)
        num_workers = min(num_workers, len(lanes))
        lanes_a_worker = math.ceil(len(lanes) / max(1, num_workers))
        capacity = math.ceil(self.global_batch_size / self.order.lanes) * lanes_a_worker
        ring = PixelRing(num_workers, capacity, self.transform.size)
        parts = loaded(_LaneParts(self, lanes, first_step, ring), num_workers)
        while True:
            yield ring.collect([next(parts) for _ in range(max(1, num_workers))], pin_memory=pin_memory)

    def lane_samples(self, lane: int, position: int) -> Iterator[tuple[int, Sample]]:
        """(position, raw sample) of a lane from the first of its positions that is not below ``position``.

        A block is read whole before its first sample is given. From then on one sample is read for each that is
        given, so a lane holds one block in memory and asks its store for a steady trickle.
        """
        position += (lane - position) % self.order.lanes
        epoch, offset = self.order.lane_offset(position, lane)
        index, skip = divmod(offset, self.order.block_samples)
        reading = self._read_lane(lane, epoch, index * self.order.block_samples)
        order = self.order.block(epoch, lane, index)
        samples: list[Sample | None] = list(islice(reading, len(order)))
        while True:
            epoch, index, upcoming = self._next_block(lane, epoch, index)
            arriving: list[Sample | None] = []
            for place in order[:skip].tolist():
                samples[place] = None  # given by an earlier session
            for place in order[skip:].tolist():
                sample, samples[place] = samples[place], None  # its memory is for the one that is read instead
                assert sample is not None  # an order names each place once
                yield position, sample
                position += self.order.lanes
                if len(arriving) < len(upcoming):
                    arriving.append(next(reading))
            arriving += islice(reading, len(upcoming) - len(arriving))
            order, samples, skip = upcoming, arriving, 0

    def _next_block(self, lane: int, epoch: int, index: int) -> tuple[int, int, np.ndarray]:
        """The block behind a block, which may be the first of a later epoch."""
        order = self.order.block(epoch, lane, index + 1)
        while not len(order):
            epoch, index = epoch + 1, -1
            order = self.order.block(epoch, lane, 0)
        return epoch, index + 1, order

    def _read_lane(self, lane: int, epoch: int, start: int) -> Iterator[Sample]:
        """The lane's raw samples in the order of the shards, epoch after epoch."""
        for number in count(epoch):
            stretches = deque(self.order.stretches(number, lane, start if number == epoch else 0))
            while stretches:
                stretch = stretches.popleft()
                places = self.manifest.training_samples(stretch.shard)[stretch.start : stretch.stop]
                if self.cache is not None and stretches:
                    self.cache.prefetch(self.manifest.shards[stretches[0].shard].stored)
                yield from read_samples(self.manifest.shards[stretch.shard], places.tolist(), cache=self.cache)


class _LaneParts(IterableDataset[Batch | RunError]):
    """Yields, batch after batch, the samples of this worker's lanes."""

    def __init__(self, stream: TrainStream, lanes: Sequence[int], first_step: int, ring: PixelRing) -> None:
        self._stream, self._lanes, self._first_step, self._ring = stream, lanes, first_step, ring

    def __iter__(self) -> Iterator[Batch | RunError]:
        worker, num_workers = this_worker()
        return error_as_last_item(self._parts(self._lanes[worker::num_workers]))

    def _parts(self, lanes: Sequence[int]) -> Iterator[Batch]:
        size, num_lanes = self._stream.global_batch_size, self._stream.order.lanes
        readers = {lane: _Lane(self._stream, lane, self._first_step * size) for lane in lanes}
        for step in count(self._first_step):
            start = step * size
            positions = sorted(
                position
                for lane in lanes
                for position in range(start + (lane - start) % num_lanes, start + size, num_lanes)
            )
            yield self._part(positions, readers)

    def _part(self, positions: list[int], readers: dict[int, _Lane]) -> Batch:
        images, place = self._ring.take(len(positions))
        slots = images.numpy()
        targets, keys, bad = [], [], []
        for slot, position in enumerate(positions):
            target, key, skipped = readers[position % self._stream.order.lanes].place(position, slots[slot])
            targets.append(target)
            keys.append(key)
            if skipped is not None:
                bad.append(skipped)
        stacked = stack_targets(targets) if targets else stack_targets([0])[:0]
        images = images if place is None else images[:0]
        return Batch(images, stacked, tuple(keys), np.asarray(positions, dtype=np.int64), tuple(bad), place)


class _Lane:
    """A lane's samples, with a look ahead for those that must stand in for a damaged one."""

    def __init__(self, stream: TrainStream, lane: int, position: int) -> None:
        self._stream = stream
        self._samples = stream.lane_samples(lane, position)
        self._ahead: deque[tuple[int, Sample]] = deque()

    def place(self, position: int, out: np.ndarray) -> tuple[Any, str, BadSample | None]:
        """Put the picture of a position into ``out``; returns its target, its key and what had to be skipped."""
        reached, sample = self._ahead.popleft() if self._ahead else next(self._samples)
        assert reached == position, (reached, position)
        try:
            return self._use(sample, position, out), sample.key, None
        except ValueError as error:
            skipped = BadSample.of(position, sample, error)
        for distance in range(MAX_CONSECUTIVE_BAD):
            substitute = self._look(distance)
            try:
                return self._use(substitute, position, out), substitute.key, skipped
            except ValueError:
                continue  # it is reported when its own turn comes
        raise RunError(f"{skipped}, nor does any of the {MAX_CONSECUTIVE_BAD} samples behind it.")

    def _use(self, sample: Sample, position: int, out: np.ndarray) -> Any:
        random = sample_generator(self._stream.order.seed, position)
        self._stream.transform(sample.first(IMAGE_FIELDS), out, random)
        return self._stream.target(sample, random)

    def _look(self, distance: int) -> Sample:
        while len(self._ahead) <= distance:
            self._ahead.append(next(self._samples))
        return self._ahead[distance][1]
