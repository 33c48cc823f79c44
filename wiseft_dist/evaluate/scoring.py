"""Scoring ensembles on a part of a dataset: its shards, its preprocessing, its labels, every sample once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wiseft_dist.config import EvaluateConfig, RunConfig
from wiseft_dist.data.cache import shard_cache
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.labels import EvaluationTarget
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.shards import Cache
from wiseft_dist.data.stage import ID_VAL, load_manifest
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, normalize
from wiseft_dist.evaluate.catalog.entries import Dataset
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.class_map import ClassMap
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.run_datasets import dataset_of_run
from wiseft_dist.evaluate.sweep.shared_layers import Adjustable, Layers
from wiseft_dist.evaluate.sweep.sweep import sweep
from wiseft_dist.merge.writer import DTYPES
from wiseft_dist.models.classifier import Classifier, read_classifier, read_vocabulary
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.run import Run


@dataclass(frozen=True)
class TestSet:
    """A dataset that is ready to be scored."""

    stream: EvaluationStream
    preprocess: Preprocess
    class_map: ClassMap | None
    """From the head's classes to the dataset's; None where they are the same."""
    columns: tuple[str, ...]
    """What else is kept of each sample."""


def open_test_set(
    manifest: Manifest,
    dataset: Dataset,
    preprocess: Preprocess,
    settings: EvaluateConfig,
    *,
    num_classes: int,
    held_out: bool = False,
    cache: Cache | None = None,
) -> TestSet:
    """Make a dataset ready to be scored.

    Args:
        manifest: Its shards.
        dataset: What is known of it. Its class map is the one from the head that will score it.
        preprocess: What the model expects of its images.
        settings: How images are read.
        num_classes: Of the head.
        held_out: Only the samples that the manifest keeps for ID validation.
        cache: Keeps shards that were read.
    """
    spec, class_map = dataset.spec, dataset.class_map
    target = EvaluationTarget(
        num_classes if class_map is None else class_map.num_classes, labels=spec.labels, metadata=spec.metadata
    )
    stream = EvaluationStream(
        manifest,
        evaluation_transform(preprocess, settings.preprocess, crop_border=spec.crop_border),
        held_out=held_out,
        max_bad=settings.max_bad_samples,
        target=target,
        cache=cache,
    )
    return TestSet(stream, preprocess, class_map, tuple(spec.metadata))


def open_test_set_of_run(config: RunConfig, run: Run, name: str) -> TestSet:
    """:func:`open_test_set` for a dataset of a run."""
    return open_test_set(
        load_manifest(run, name),
        dataset_of_run(config, run, name),
        preprocess_of(read_config(run.zero_shot)),
        config.evaluate,
        num_classes=len(read_vocabulary(run.zero_shot).classnames),
        held_out=name == ID_VAL,
        cache=shard_cache(config.data),
    )


def load_module(config: RunConfig, run: Run, device: torch.device) -> Classifier:
    """theta_0 as the module that ensembles are set in, in the precision of the forward pass."""
    module = read_classifier(run.zero_shot)
    return module.to(device=device, dtype=DTYPES[config.evaluate.precision]).eval().requires_grad_(False)


def layers_of(ensemble: Adjustable, settings: EvaluateConfig) -> Layers:
    """The ensemble's layers, compiled where the settings say so; the same for all datasets."""
    return Layers(ensemble, compile_batch_size=settings.batch_size if settings.compile else None)


def score_part(
    ensemble: Adjustable,
    layers: Layers,
    test_set: TestSet,
    part: Part,
    members: Sequence[Member],
    settings: EvaluateConfig,
    *,
    compare: bool = True,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Predictions:
    """Score every member on one decode pass over a part.

    Args:
        ensemble: The module whose alpha is set.
        layers: Its layers.
        test_set: The dataset.
        part: Which of its positions.
        members: K of them.
        settings: How images are read and batched.
        compare: Compare each member with theta_0.
        on_progress: Called with the number of samples finished since the last call.

    Raises:
        RunError: if not every sample was seen exactly once, too many are damaged, or a member's logits are not finite.
    """
    parameter = next(ensemble.module.parameters())

    def prepare(pixels: Tensor) -> Tensor:
        return normalize(pixels.to(parameter.device, non_blocking=True), test_set.preprocess, parameter.dtype)

    stream = test_set.stream
    return sweep(
        ensemble,
        stream.stretch(part.start, part.stop, settings.batch_size, num_workers=settings.workers),
        members,
        prepare=prepare,
        cache_images=settings.cache_images,
        class_map=test_set.class_map,
        columns=test_set.columns,
        compare=compare,
        layers=layers,
        dataset=part.dataset,
        on_progress=on_progress,
    )
