"""Scoring K ensembles on one decode pass: images stay on the device while alpha changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wiseft_dist.data.batch import Batch
from wiseft_dist.data.receipt import BadSample


class Adjustable(Protocol):
    """A module that becomes theta_alpha when told to."""

    @property
    def module(self) -> nn.Module:
        """What scores images."""

    def set_alpha(self, alpha: float) -> None:
        """Make the module theta_alpha."""


@dataclass(frozen=True)
class Predictions:
    """What each of K ensembles said about each of n samples."""

    keys: tuple[str, ...]
    labels: np.ndarray
    """int64 ``[n]``."""
    predictions: np.ndarray
    """int64 ``[K, n]``: the class with the largest logit."""
    confidences: np.ndarray
    """float32 ``[K, n]``: its softmax probability."""
    bad: tuple[BadSample, ...] = ()
    """Samples that could not be decoded; they are none of the n."""

    @property
    def num_correct(self) -> np.ndarray:
        """Correct predictions of each ensemble, int64 ``[K]``."""
        return np.asarray((self.predictions == self.labels).sum(axis=1))


def sweep(
    ensemble: Adjustable,
    batches: Iterable[Batch],
    alphas: Sequence[float],
    *,
    prepare: Callable[[Tensor], Tensor],
    cache_images: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Predictions:
    """Score every alpha on every batch; each batch is decoded, moved and normalised once.

    Args:
        ensemble: The module whose alpha is set.
        batches: uint8 images with labels.
        alphas: K mixing coefficients.
        prepare: uint8 ``[batch, height, width, 3]`` on the host to normalised floats on the device.
        cache_images: How many images may stay on the device at a time. Alpha is set once a cache-full.
        on_progress: Called with the number of samples finished since the last call.
    """
    keys: list[str] = []
    bad: list[BadSample] = []
    labels: list[Tensor] = []
    scored: list[tuple[np.ndarray, np.ndarray]] = []
    for group in _groups(batches, cache_images):
        images = [prepare(batch.images) for batch in group]
        scored.append(_score(ensemble, images, alphas))
        labels += [batch.targets for batch in group]
        keys += [key for batch in group for key in batch.keys]
        bad += [entry for batch in group for entry in batch.bad]
        on_progress(sum(len(batch) for batch in group))
    return Predictions(
        keys=tuple(keys),
        labels=torch.cat(labels).numpy(),
        predictions=np.concatenate([classes for classes, _ in scored], axis=1),
        confidences=np.concatenate([confidences for _, confidences in scored], axis=1),
        bad=tuple(bad),
    )


def _groups(batches: Iterable[Batch], cache_images: int) -> Iterator[list[Batch]]:
    """Consecutive batches of together at most ``cache_images`` samples, but at least one batch."""
    group: list[Batch] = []
    for batch in batches:
        if group and sum(map(len, group)) + len(batch) > cache_images:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


@torch.inference_mode()
def _score(ensemble: Adjustable, images: Sequence[Tensor], alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and confidences ``[K, n]``; the host waits for the device once a group."""
    classes, confidences = [], []
    for alpha in alphas:
        ensemble.set_alpha(alpha)
        best = [ensemble.module(batch).float().softmax(dim=-1).max(dim=-1) for batch in images]
        confidences.append(torch.cat([values for values, _ in best]))
        classes.append(torch.cat([indices for _, indices in best]))
    return torch.stack(classes).cpu().numpy(), torch.stack(confidences).cpu().numpy()
