"""Evaluation batches: every sample exactly once, counted, by any number of readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np
from torch.utils.data import IterableDataset

from wiseft_dist.data.batch import Batch, Target, class_label, stack_targets
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.order import sample_generator
from wiseft_dist.data.receipt import BadSample, refuse_more
from wiseft_dist.data.shards import Cache, Sample, read_samples
from wiseft_dist.data.tar import IMAGE_FIELDS
from wiseft_dist.data.workers import PixelRing, error_as_last_item, loaded, this_worker
from wiseft_dist.errors import RunError


class EvaluationTransform(Protocol):
    """From an encoded picture to pixels."""

    @property
    def size(self) -> int:
        """Height and width of the result."""

    @property
    def modules(self) -> Sequence[str]:
        """What a decoding process takes long to import before it can use it."""

    def __call__(self, data: bytes, out: np.ndarray) -> None:
        """Write uint8 ``[size, size, 3]`` to ``out``; ValueError if the picture does not decode."""


@dataclass(frozen=True)
class EvaluationStream:
    """A test set, or the held-out piece of a training set."""

    manifest: Manifest
    transform: EvaluationTransform
    held_out: bool = False
    """Read only the samples that the manifest keeps for ID validation."""
    max_bad: int = 0
    """Samples that may be skipped."""
    target: Target = class_label
    cache: Cache | None = None

    @cached_property
    def _counts(self) -> np.ndarray:
        """Samples of each shard that belong to the stream, int64 ``[shards]``."""
        held_out = self.manifest.held_out_counts
        return held_out if self.held_out else self.manifest.training_counts + held_out

    @property
    def num_samples(self) -> int:
        """How many samples there are, over all readers."""
        return self.manifest.num_held_out if self.held_out else self.manifest.num_samples

    def batches(self, batch_size: int, *, num_workers: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches of at most ``batch_size``; rank and worker read consecutive pieces of their own.

        Batches never hold padding. What the samples are is settled by position: each of this rank's comes exactly
        once, or is named in a batch's ``bad``.

        Raises:
            RunError: if a sample is missing, comes twice, or shares its key with another; if too many are damaged.
        """
        start, stop = piece(self.num_samples, rank, world_size)
        keys: set[str] = set()
        num_bad = 0
        for batch in self.stretch(start, stop, batch_size, num_workers=num_workers):
            keys.update(batch.keys)
            num_bad += len(batch.bad)
            yield batch
        if len(keys) + num_bad != stop - start:
            found = f"{stop - start} samples with {len(keys) + num_bad} distinct keys"
            raise self._other_than_the_manifest(found, stop - start)

    def stretch(self, start: int, stop: int, batch_size: int, *, num_workers: int) -> Iterator[Batch]:
        """The batches of the positions ``[start, stop)``; a key may come twice, as in training shards.

        Raises:
            RunError: if a sample is missing or comes twice; if too many are damaged.
        """
        ring = PixelRing(num_workers, batch_size, self.transform.size)
        seen = np.zeros(stop - start, dtype=np.int64)
        bad: list[BadSample] = []
        pieces = _LoadedPieces(self, start, stop, batch_size, ring)
        for batch in (ring.collect([part]) for part in loaded(pieces, num_workers, modules=self.transform.modules)):
            np.add.at(seen, batch.positions - start, 1)
            for entry in batch.bad:
                seen[entry.position - start] += 1
                bad.append(entry)
                refuse_more(bad, entry, self.max_bad)
            yield batch
        if (seen != 1).any():
            raise self._other_than_the_manifest(f"{int(seen.sum())} samples", stop - start)

    def _other_than_the_manifest(self, found: str, wanted: int) -> RunError:
        return RunError(
            f"read {found} where the manifest says {wanted} (first shard {self.manifest.shards[0].url}): "
            "look for keys that occur twice or shards that changed."
        )

    def samples(self, start: int, stop: int) -> Iterator[tuple[int, Sample]]:
        """(position, raw sample) of the positions ``[start, stop)`` of the dataset."""
        counts, ends = self._counts, np.cumsum(self._counts)
        for index in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            begin = int(ends[index] - counts[index])
            if begin >= stop:
                return
            low, high = max(start, begin) - begin, min(stop, int(ends[index])) - begin
            if low < high:
                places = self.manifest.held_out(index)[low:high].tolist() if self.held_out else range(low, high)
                samples = read_samples(self.manifest.shards[index], places, cache=self.cache)
                yield from enumerate(samples, begin + low)


def piece(num_samples: int, part: int, num_parts: int) -> tuple[int, int]:
    """The positions of one of ``num_parts`` consecutive pieces, equally long to one sample."""
    return num_samples * part // num_parts, num_samples * (part + 1) // num_parts


class _LoadedPieces(IterableDataset[Batch | RunError]):
    """Yields the batches of this worker's piece of the positions ``[start, stop)``."""

    def __init__(self, stream: EvaluationStream, start: int, stop: int, batch_size: int, ring: PixelRing) -> None:
        self._stream, self._batch_size, self._ring = stream, batch_size, ring
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[Batch | RunError]:
        low, high = piece(self._stop - self._start, *this_worker())
        return error_as_last_item(self._batches(self._start + low, self._start + high))

    def _batches(self, start: int, stop: int) -> Iterator[Batch]:
        samples = self._stream.samples(start, stop)
        while group := list(islice(samples, self._batch_size)):
            yield self._batch(group)

    def _batch(self, group: list[tuple[int, Sample]]) -> Batch:
        images, place = self._ring.take(len(group))
        slots = images.numpy()
        good: list[tuple[int, str, int]] = []
        bad = []
        for position, sample in group:
            try:
                label = self._stream.target(sample, sample_generator(0, position))
                self._stream.transform(sample.first(IMAGE_FIELDS), slots[len(good)])
                good.append((position, sample.key, label))
            except ValueError as error:
                bad.append(BadSample.of(position, sample, error))
        positions = np.asarray([position for position, _, _ in good], dtype=np.int64)
        labels = stack_targets([label for _, _, label in good] or [0])[: len(good)]
        images = images[: len(good)] if place is None else images[:0]
        place = place and place._replace(num_images=len(good))
        return Batch(images, labels, tuple(key for _, key, _ in good), positions, tuple(bad), place)
