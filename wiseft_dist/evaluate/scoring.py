"""Scoring ensembles on one dataset of a run: its shards, its preprocessing, every sample once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wiseft_dist.config import RunConfig
from wiseft_dist.data.batch import ClassLabel
from wiseft_dist.data.cache import shard_cache
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.stage import ID_VAL, load_manifest
from wiseft_dist.data.transforms import evaluation_transform, normalize
from wiseft_dist.evaluate.sweep import Adjustable, Predictions, sweep
from wiseft_dist.merge.writer import DTYPES
from wiseft_dist.models.classifier import Classifier, read_classifier, read_vocabulary
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.progress import progress_bar
from wiseft_dist.run import Run


def load_module(config: RunConfig, run: Run, device: torch.device) -> Classifier:
    """theta_0 as the module that ensembles are set in, in the precision of the forward pass."""
    module = read_classifier(run.zero_shot)
    return module.to(device=device, dtype=DTYPES[config.evaluate.precision]).eval().requires_grad_(False)


def score_dataset(config: RunConfig, run: Run, name: str, ensemble: Adjustable, alphas: Sequence[float]) -> Predictions:
    """Score every alpha on one decode pass.

    Args:
        config: How images are read and batched.
        run: Where manifests and theta_0 lie.
        name: A dataset of the run.
        ensemble: The module whose alpha is set.
        alphas: K mixing coefficients.

    Raises:
        RunError: if not every sample was seen exactly once.
    """
    preprocess = preprocess_of(read_config(run.zero_shot))
    stream = EvaluationStream(
        load_manifest(run, name),
        evaluation_transform(preprocess, config.evaluate.preprocess),
        held_out=name == ID_VAL,
        max_bad=config.evaluate.max_bad_samples,
        target=ClassLabel(len(read_vocabulary(run.zero_shot).classnames)),
        cache=shard_cache(config.data),
    )
    parameter = next(ensemble.module.parameters())

    def prepare(pixels: Tensor) -> Tensor:
        return normalize(pixels.to(parameter.device, non_blocking=True), preprocess, parameter.dtype)

    with progress_bar(f"evaluating {name}", total=stream.num_samples, unit="images") as bar:
        return sweep(
            ensemble,
            stream.batches(config.evaluate.batch_size, num_workers=config.evaluate.workers),
            alphas,
            prepare=prepare,
            cache_images=config.evaluate.cache_images,
            on_progress=bar.advance,
        )
