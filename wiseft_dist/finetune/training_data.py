"""What a training reads: pictures from shards, or features that were computed from them once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from wiseft_dist.config import RunConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.cache import shard_cache
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.transforms import evaluation_transform, normalize, training_transform
from wiseft_dist.distributed import device_of
from wiseft_dist.finetune.deepspeed_settings import DTYPES
from wiseft_dist.finetune.features.compute import FeatureSource, compute_features
from wiseft_dist.finetune.features.stream import FeatureStream
from wiseft_dist.finetune.recipes import Recipe
from wiseft_dist.finetune.validation import HeldOutStream
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.ranks import Ranks
from wiseft_dist.run import Run


class TrainingData(Protocol):
    """The inputs of one rank."""

    @property
    def held_out(self) -> HeldOutStream:
        """The piece that is never trained on."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's share of each global batch, without end."""

    def prepare(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """From a batch's ``images``, on the device, to what the recipe's module takes."""


def training_data(config: RunConfig, run: Run, recipe: Recipe, manifest: Manifest, ranks: Ranks) -> TrainingData:
    """The data of a recipe. All ranks call this: features that nobody has computed yet are computed now."""
    if recipe.inputs == "features":
        return FeatureData(config, run, manifest, ranks)
    return PictureData(config, run, recipe, manifest, ranks)


class PictureData:
    """Augmented pictures to train on, plain ones to validate on."""

    def __init__(self, config: RunConfig, run: Run, recipe: Recipe, manifest: Manifest, ranks: Ranks) -> None:
        data = config.data
        self._preprocess = preprocess_of(read_config(run.zero_shot))
        self._ranks, self._workers, self._pin_memory = ranks, data.workers, device_of(ranks).type == "cuda"
        self._stream = TrainStream(
            manifest=manifest,
            order=sample_order(manifest, seed=config.seed, lanes=data.lanes, block_samples=data.block_samples),
            transform=training_transform(self._preprocess, data.augment),
            target=recipe.target(run.zero_shot),
            global_batch_size=config.finetune.global_batch_size,
            cache=shard_cache(data),
        )
        self.held_out = EvaluationStream(
            manifest,
            evaluation_transform(self._preprocess, config.evaluate.preprocess),
            held_out=True,
            max_bad=data.max_bad_samples,
            target=recipe.validation_target(run.zero_shot),
            cache=shard_cache(data),
        )

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Without end."""
        return self._stream.batches(
            first_step=first_step,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            num_workers=self._workers,
            pin_memory=self._pin_memory,
        )

    def prepare(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalised ``[batch, 3, height, width]`` of uint8 ``[batch, height, width, 3]``."""
        return normalize(inputs, self._preprocess, dtype)


class FeatureData:
    """Features of theta_0's visual tower, of pictures without augmentation."""

    def __init__(self, config: RunConfig, run: Run, manifest: Manifest, ranks: Ranks) -> None:
        self._ranks = ranks
        shared, data = config.finetune.features, config.data
        source = FeatureSource(run.zero_shot, manifest, config.evaluate.preprocess, DTYPES[config.finetune.precision])
        features = compute_features(
            source,
            Path(shared).expanduser() if shared else run.path / "features",
            ranks=ranks,
            device=device_of(ranks),
            batch_size=config.evaluate.batch_size,
            workers=data.workers,
            max_bad=data.max_bad_samples,
            cache=shard_cache(data),
        )
        self._stream = FeatureStream(features, manifest, config.seed, config.finetune.global_batch_size)
        self.held_out = self._stream.held_out()

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Without end."""
        ranks = self._ranks
        return self._stream.batches(first_step=first_step, rank=ranks.rank, world_size=ranks.world_size)

    def prepare(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """As they are: a head computes in fp32."""
        return inputs
