"""Features of theta_0 for a whole training set: computed once, by all ranks, and kept for every run that needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wiseft_dist.commits import commit_digest, digest
from wiseft_dist.data.batch import Batch, ClassLabel
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.receipt import BadSample, refuse_more
from wiseft_dist.data.shards import Cache
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, normalize
from wiseft_dist.distributed import together
from wiseft_dist.finetune.features.chunk import (
    FeatureChunk,
    decode_keys,
    encode_keys,
    is_whole,
    read_chunk,
    write_chunk,
)
from wiseft_dist.models.classifier import Classifier, read_classifier, read_vocabulary
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.progress import Bar, progress_bar
from wiseft_dist.ranks import Ranks

CHUNK_SAMPLES = 16_384
"""Samples a file: what a computation that is cut off loses at most on each rank."""


@dataclass(frozen=True)
class FeatureSource:
    """Everything that decides what the features are."""

    zero_shot: Path
    """The committed folder of theta_0."""
    manifest: Manifest
    """All its samples count, held-out ones too; which are held out does not matter."""
    mode: Literal["fast", "exact"]
    """Of :func:`wiseft_dist.data.transforms.evaluation_transform`."""
    dtype: torch.dtype
    """Of the visual tower."""
    chunk_samples: int = CHUNK_SAMPLES

    @cached_property
    def preprocess(self) -> Preprocess:
        """What theta_0 expects of its images."""
        return preprocess_of(read_config(self.zero_shot))

    @cached_property
    def key(self) -> str:
        """The name under which the features are kept: a hash of all that they depend on."""
        return digest(
            {
                "model": commit_digest(self.zero_shot),
                "preprocess": asdict(self.preprocess),
                "mode": self.mode,
                "dtype": str(self.dtype),
                "samples": replace(self.manifest, held_out_fraction=0.0).content_digest,
                "shards": [shard.url for shard in self.manifest.shards],
                "chunk_samples": self.chunk_samples,
            }
        )

    def chunk_files(self, folder: Path) -> list[Path]:
        """The files of all chunks, in order."""
        count = -(-self.manifest.num_samples // self.chunk_samples)
        return [folder / self.key / f"features-{index:05d}-of-{count:05d}.safetensors" for index in range(count)]

    def span(self, chunk: int) -> range:
        """The positions of a chunk."""
        return range(self.manifest.num_samples)[chunk * self.chunk_samples : (chunk + 1) * self.chunk_samples]


@dataclass(frozen=True)
class Features:
    """The features of a dataset by position; only what is asked for is read."""

    chunks: tuple[FeatureChunk, ...]
    chunk_samples: int

    @cached_property
    def bad(self) -> dict[int, BadSample]:
        """The samples that could not be used, by position."""
        return {entry.position: entry for chunk in self.chunks for entry in chunk.bad}

    def gather(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
        """Rows of the dataset.

        Args:
            positions: Where the samples stand in the dataset, in any order, int64 ``[batch]``.

        Returns:
            Features fp32 ``[batch, embedding]``, labels int64 ``[batch]`` and keys.
        """
        features = np.empty((len(positions), self.chunks[0].features.shape[1]), np.float32)
        labels = np.empty(len(positions), np.int64)
        keys = np.empty(len(positions), dtype=object)
        numbers, offsets = np.divmod(positions, self.chunk_samples)
        for number in np.unique(numbers).tolist():
            chunk, places = self.chunks[number], np.flatnonzero(numbers == number)
            rows = offsets[places]
            features[places] = chunk.features.numpy()[rows]  # numpy: torch would wake its threads for a few rows
            labels[places] = chunk.labels.numpy()[rows]
            keys[places] = decode_keys(chunk.keys.numpy()[rows])
        return torch.from_numpy(features), torch.from_numpy(labels), tuple(keys)


def compute_features(
    source: FeatureSource,
    folder: Path,
    *,
    ranks: Ranks,
    device: torch.device,
    batch_size: int,
    workers: int,
    max_bad: int = 0,
    cache: Cache | None = None,
) -> Features:
    """The features of every sample, as :meth:`Classifier.features` gives them; what a folder has is not computed again.

    Every rank of the process group must call this. Chunks go to ranks in turn; whole ones are left as they are.

    Args:
        source: The model, the samples and how they are prepared.
        folder: Where features are kept; several runs may use it at a time.
        ranks: This process's place.
        device: Where the visual tower runs.
        batch_size: Images a forward pass.
        workers: Decoding processes of this rank.
        max_bad: Samples that may fail to decode.
        cache: Keeps shards on the node.

    Raises:
        RunError: if a shard is not as the manifest says, too many samples are damaged, or a disk is full.
    """
    files = source.chunk_files(folder)
    # Nobody looks for a file before its writer is done: shared file systems remember what was not there.
    missing = [index for index in range(ranks.rank, len(files), ranks.world_size) if not is_whole(files[index])]
    vocabulary_size = len(read_vocabulary(source.zero_shot).classnames)
    transform = evaluation_transform(source.preprocess, source.mode)
    stream = EvaluationStream(
        source.manifest, transform, max_bad=max_bad, target=ClassLabel(vocabulary_size), cache=cache
    )

    def compute() -> None:
        if not missing:
            return
        classifier = read_classifier(source.zero_shot).to(device=device, dtype=source.dtype).eval()
        spans = [source.span(index) for index in missing]
        with progress_bar("computing features", total=sum(map(len, spans)), unit="images") as bar:
            for index, span in zip(missing, spans, strict=True):
                batches = stream.stretch(span.start, span.stop, batch_size, num_workers=workers)
                write_chunk(files[index], _chunk(source, classifier, batches, span, bar))

    together(compute)
    features = Features(tuple(map(read_chunk, files)), source.chunk_samples)
    if features.bad:
        bad = list(features.bad.values())
        refuse_more(bad, bad[-1], max_bad)
    return features


@torch.inference_mode()
def _chunk(
    source: FeatureSource, classifier: Classifier, batches: Iterable[Batch], span: range, bar: Bar
) -> FeatureChunk:
    """The features of the positions in ``span``."""
    features = torch.zeros(len(span), classifier.head.in_features)
    labels = torch.zeros(len(span), dtype=torch.int64)
    keys = [""] * len(span)
    bad: list[BadSample] = []
    parameter = next(classifier.parameters())
    for batch in batches:
        rows = batch.positions - span.start
        if len(batch):
            images = normalize(batch.images.to(parameter.device), source.preprocess, parameter.dtype)
            features[rows] = classifier.features(images).float().cpu()
            labels[rows] = batch.targets
        for row, key in zip(rows.tolist(), batch.keys, strict=True):
            keys[row] = key
        bad += batch.bad
        bar.advance(len(batch))
    return FeatureChunk(features, labels, encode_keys(keys), tuple(bad))
