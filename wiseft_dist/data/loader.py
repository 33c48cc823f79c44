"""Batches for training (endless, resumable at any position) and for evaluation (every sample exactly once)."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wiseft_dist import storage
from wiseft_dist.data.manifest import CAPTION_FIELDS, IMAGE_FIELDS, LABEL_FIELDS, Manifest
from wiseft_dist.data.order import Block, SampleOrder, sample_generator
from wiseft_dist.data.shards import Sample, read_shard
from wiseft_dist.data.transforms import Pixels, decode
from wiseft_dist.errors import RunError

Item = TypeVar("Item")
PREFETCH = 4
"""Batches that each decoding process keeps ready."""
Target = Callable[[Sample], Any]
"""What is learnt from a sample: an integer label, or the tokens of its caption."""


@dataclass(frozen=True)
class Batch:
    """Samples side by side."""

    images: torch.Tensor
    """uint8 ``[batch, height, width, 3]``."""
    targets: torch.Tensor
    """int64 ``[batch]`` (labels) or ``[batch, context]`` (tokens)."""
    keys: tuple[str, ...]

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.keys)

    def split(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of ``size`` samples."""
        for start in range(0, len(self), size):
            stop = start + size
            yield Batch(self.images[start:stop], self.targets[start:stop], self.keys[start:stop])


def class_label(sample: Sample) -> int:
    """The label of a classification sample."""
    return int(sample.first(LABEL_FIELDS))


def caption(sample: Sample) -> str:
    """The caption of an image-text sample."""
    return sample.first(CAPTION_FIELDS).decode("utf-8")


def sample_order(manifest: Manifest, *, seed: int, lanes: int, block_shards: int) -> SampleOrder:
    """The training order of a manifest: held-out samples are not in it."""
    counts = tuple(shard.num_samples - len(shard.held_out) for shard in manifest.shards)
    return SampleOrder(counts, seed, lanes, block_shards)


@dataclass(frozen=True)
class TrainStream:
    """Everything that decides which training batches come, and how they look."""

    manifest: Manifest
    order: SampleOrder
    transform: Callable[[Image.Image, np.random.Generator], Pixels]
    target: Target
    global_batch_size: int

    def batches(self, *, first_step: int, rank: int, world_size: int, num_workers: int) -> Iterator[Batch]:
        """This rank's share of each global batch from ``first_step`` on, without end.

        Step ``s`` holds the positions ``[s B, (s + 1) B)``; the rank's are those with ``position % W == rank``. The
        number of workers changes who decodes a sample, never where it stands.
        """
        lanes = range(rank, self.order.lanes, world_size)
        num_workers = min(num_workers, len(lanes))
        parts = _loaded(_LaneParts(self, lanes, first_step), num_workers)
        while True:
            yield _join([next(parts) for _ in range(max(1, num_workers))])

    def lane_samples(self, lane: int, position: int) -> Iterator[tuple[int, Sample]]:
        """(position, raw sample) of a lane from the first of its positions that is not below ``position``."""
        position += (lane - position) % self.order.lanes
        epoch, skip = self.order.lane_offset(position, lane)
        while True:
            for block in self.order.blocks(epoch, lane):
                if skip >= len(block.order):
                    skip -= len(block.order)
                    continue
                samples = self._load(block)
                for key in list(block.samples())[skip:]:
                    yield position, samples.pop(key)
                    position += self.order.lanes
                skip = 0
            epoch += 1

    def _load(self, block: Block) -> dict[tuple[int, int], Sample]:
        """The raw samples of a block, by (shard, index among the shard's trainable samples)."""
        loaded = {}
        for stretch in block.stretches:
            places = self.manifest.training_samples(stretch.shard)[stretch.start : stretch.stop]
            wanted = {int(place): stretch.start + offset for offset, place in enumerate(places)}
            shard = self.manifest.shards[stretch.shard]
            for sample in read_shard(shard, int(places[0]), int(places[-1]) + 1):
                if sample.index in wanted:
                    loaded[stretch.shard, wanted[sample.index]] = sample
        return loaded


@dataclass(frozen=True)
class _Part:
    """One worker's samples of a batch."""

    positions: np.ndarray
    images: torch.Tensor
    targets: list[Any]
    keys: list[str]


class _LaneParts(IterableDataset[_Part | RunError]):
    """Yields, batch after batch, the samples of this worker's lanes."""

    def __init__(self, stream: TrainStream, lanes: Sequence[int], first_step: int) -> None:
        self._stream, self._lanes, self._first_step = stream, lanes, first_step

    def __iter__(self) -> Iterator[_Part | RunError]:
        worker, num_workers = _this_worker()
        return _error_as_last_item(self._parts(self._lanes[worker::num_workers]))

    def _parts(self, lanes: Sequence[int]) -> Iterator[_Part]:
        stream, size = self._stream, self._stream.global_batch_size
        readers = {lane: stream.lane_samples(lane, self._first_step * size) for lane in lanes}
        for step in count(self._first_step):
            positions = range(step * size, (step + 1) * size)
            yield self._part([p for p in positions if p % stream.order.lanes in readers], readers)

    def _part(self, positions: list[int], readers: dict[int, Iterator[tuple[int, Sample]]]) -> _Part:
        images, targets, keys = [], [], []
        for position in positions:
            reached, sample = next(readers[position % self._stream.order.lanes])
            assert reached == position, (reached, position)
            random = sample_generator(self._stream.order.seed, position)
            images.append(self._stream.transform(_decoded(sample), random))
            targets.append(self._stream.target(sample))
            keys.append(sample.key)
        return _Part(np.asarray(positions), _stack_images(images), targets, keys)


def _join(parts: list[_Part]) -> Batch:
    """Weave the workers' parts of a batch together by position."""
    parts = [part for part in parts if part.keys]
    order = np.argsort(np.concatenate([part.positions for part in parts]))
    images = torch.cat([part.images for part in parts])[order]
    targets = [target for part in parts for target in part.targets]
    keys = [key for part in parts for key in part.keys]
    return Batch(
        images,
        _stack_targets([targets[index] for index in order]),
        tuple(keys[index] for index in order),
    )


@dataclass(frozen=True)
class EvaluationStream:
    """Every sample of a dataset exactly once, counted."""

    manifest: Manifest
    transform: Callable[[Image.Image], Pixels]
    held_out: bool = False
    """Read only the samples that the manifest keeps for ID validation."""

    @property
    def num_samples(self) -> int:
        """How many samples come."""
        return self.manifest.num_held_out if self.held_out else self.manifest.num_samples

    def batches(self, batch_size: int, *, num_workers: int) -> Iterator[Batch]:
        """Batches of at most ``batch_size``; each worker reads its own consecutive piece.

        Raises:
            RunError: if the number of samples or distinct keys is not what the manifest says.
        """
        keys: set[str] = set()
        seen = 0
        for batch in _loaded(_EvaluationBatches(self, batch_size), num_workers):
            seen += len(batch)
            keys.update(batch.keys)
            yield batch
        if seen != self.num_samples or len(keys) != seen:
            raise RunError(
                f"read {seen} samples with {len(keys)} distinct keys where the manifest says {self.num_samples} "
                f"(first shard {self.manifest.shards[0].url}): look for keys that occur twice or shards that changed."
            )

    def samples(self, part: int, num_parts: int) -> Iterator[Sample]:
        """The samples of one of ``num_parts`` consecutive, equally long pieces of the dataset."""
        start = self.num_samples * part // num_parts
        stop = self.num_samples * (part + 1) // num_parts
        begin = 0
        for shard in self.manifest.shards:
            chosen = shard.held_out if self.held_out else range(shard.num_samples)
            mine = chosen[max(0, start - begin) : max(0, stop - begin)]
            begin += len(chosen)
            if mine:
                wanted = frozenset(mine) if self.held_out else mine
                yield from (s for s in read_shard(shard, mine[0], mine[-1] + 1) if s.index in wanted)


class _EvaluationBatches(IterableDataset[Batch | RunError]):
    """Yields the batches of this worker's piece of the dataset."""

    def __init__(self, stream: EvaluationStream, batch_size: int) -> None:
        self._stream, self._batch_size = stream, batch_size

    def __iter__(self) -> Iterator[Batch | RunError]:
        return _error_as_last_item(self._batches(*_this_worker()))

    def _batches(self, part: int, num_parts: int) -> Iterator[Batch]:
        samples = self._stream.samples(part, num_parts)
        while group := list(islice(samples, self._batch_size)):
            images = [self._stream.transform(_decoded(sample)) for sample in group]
            labels = [class_label(sample) for sample in group]
            yield Batch(_stack_images(images), _stack_targets(labels), tuple(sample.key for sample in group))


def _loaded(dataset: IterableDataset[Item | RunError], num_workers: int) -> Iterator[Item]:
    """The items of every worker in turn; a worker's error is raised here as it was there."""
    context = multiprocessing.get_context("fork" if storage.fork_is_safe() else "forkserver")
    context.set_forkserver_preload([__name__, "open_clip.transform"])
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        multiprocessing_context=context if num_workers else None,
        worker_init_fn=_ignore_preemption_signal,
    )
    for item in loader:
        if isinstance(item, RunError):
            raise item
        yield item


def _ignore_preemption_signal(worker: int) -> None:
    """Slurm's warning goes to every process of a job; what to do about it is the training process's business."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _error_as_last_item(items: Iterator[Item]) -> Iterator[Item | RunError]:
    """Hand an error over as a value: raised in a worker, DataLoader would make it a page of traceback."""
    try:
        yield from items
    except RunError as error:
        yield error


def _this_worker() -> tuple[int, int]:
    """Number of this decoding process, and how many there are."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def _stack_images(images: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)) if images else torch.empty(0, dtype=torch.uint8)


def _stack_targets(targets: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(target, dtype=np.int64) for target in targets]))


def _decoded(sample: Sample) -> Image.Image:
    try:
        return decode(sample.first(IMAGE_FIELDS))
    except (OSError, ValueError, SyntaxError) as error:
        raise RunError(f"{sample.shard}: sample {sample.key!r} does not decode as an image: {error}") from error
