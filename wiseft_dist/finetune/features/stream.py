"""Batches of features: the same stream as that of pictures, over a shuffle of the whole training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count

import numpy as np

from wiseft_dist.data.batch import Batch
from wiseft_dist.data.evaluation import piece
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.features.compute import Features


@dataclass(frozen=True)
class FeatureStream:
    """Everything that decides which batches of features come."""

    features: Features
    manifest: Manifest
    seed: int
    global_batch_size: int

    def batches(self, *, first_step: int, rank: int, world_size: int) -> Iterator[Batch]:
        """This rank's share of each global batch from ``first_step`` on, without end; ``images`` are features.

        Step ``s`` holds the positions ``[s B, (s + 1) B)``; the rank's are those with ``position % W == rank``.
        Position ``p`` of N training samples stands in epoch ``p // N``, whose order is a permutation. A sample that
        could not be used is reported in the batch, and the next good one of its epoch stands in for it.
        """
        for step in count(first_step):
            start = step * self.global_batch_size
            first = start + (rank - start) % world_size
            yield self._batch(np.arange(first, start + self.global_batch_size, world_size))

    def held_out(self) -> HeldOutFeatures:
        """The samples that are never trained on."""
        places = (self.manifest.held_out(index) for index in range(len(self.manifest.shards)))
        return HeldOutFeatures(self.features, _dataset_positions(self.manifest, places))

    def _batch(self, positions: np.ndarray) -> Batch:
        rows, bad = self._rows(positions), []
        for index in np.flatnonzero(np.isin(rows, list(self.features.bad))).tolist():
            position = int(positions[index])
            bad.append(replace(self.features.bad[int(rows[index])], position=position))
            rows[index] = self._stand_in(position, bad[-1])
        return Batch(*self.features.gather(rows), positions, tuple(bad))

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        """Where the samples of these positions of the stream stand in the dataset, int64 ``[batch]``."""
        training = self._training_rows
        epochs, places = np.divmod(positions, len(training))
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = training[_epoch_order(len(training), self.seed, epoch)[places[here]]]
        return rows

    def _stand_in(self, position: int, skipped: BadSample) -> int:
        """The next good sample of the position's epoch, from its beginning again behind its end."""
        size = len(self._training_rows)
        epoch, place = divmod(position, size)
        ahead = epoch * size + (place + np.arange(1, size)) % size
        good = (row for row in self._rows(ahead).tolist() if row not in self.features.bad)
        found = next(good, None)
        if found is None:
            raise RunError(f"{skipped}, nor does any other training sample.")
        return int(found)

    @cached_property
    def _training_rows(self) -> np.ndarray:
        """Where the training samples stand in the dataset, rising, int64 ``[training samples]``."""
        places = (self.manifest.training_samples(index) for index in range(len(self.manifest.shards)))
        return _dataset_positions(self.manifest, places)


@dataclass(frozen=True)
class HeldOutFeatures:
    """The held-out samples, as :class:`wiseft_dist.data.evaluation.EvaluationStream` gives them."""

    features: Features
    positions: np.ndarray
    """Where they stand in the dataset, int64 ``[samples]``."""

    @property
    def num_samples(self) -> int:
        """How many samples there are, over all readers."""
        return len(self.positions)

    def batches(self, batch_size: int, *, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches of at most ``batch_size``; ranks read consecutive pieces. Nothing is decoded: workers do not help.

        A sample that could not be used is left out and named in a batch's ``bad``.
        """
        start, stop = piece(self.num_samples, rank, world_size)
        for low in range(start, stop, batch_size):
            group = np.arange(low, min(low + batch_size, stop))
            is_bad = np.array([row in self.features.bad for row in self.positions[group].tolist()])
            bad = tuple(
                replace(self.features.bad[int(self.positions[place])], position=int(place)) for place in group[is_bad]
            )
            yield Batch(*self.features.gather(self.positions[group[~is_bad]]), group[~is_bad], bad)


def _dataset_positions(manifest: Manifest, places: Iterator[np.ndarray]) -> np.ndarray:
    """Positions in each shard as positions in the dataset, int64 ``[samples]``."""
    ends = np.cumsum([shard.num_samples for shard in manifest.shards])
    parts = [end - shard.num_samples + part for end, shard, part in zip(ends, manifest.shards, places, strict=True)]
    return np.concatenate(parts).astype(np.int64)


@lru_cache(maxsize=4)
def _epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation, int64 ``[samples]``."""
    key = np.array([seed ^ 0xFEA7, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_samples)
