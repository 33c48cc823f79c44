"""Mixup and CutMix: pictures of a batch are blended on the device, and so are their labels.

The arithmetic is timm's. It draws from numpy's global generator, which is set for each batch and put back after it:
what a batch becomes depends on the run's seed and the batch's place alone, also after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor

from wiseft_dist.config import AugmentConfig
from wiseft_dist.errors import UserError


def make_mixing(augment: AugmentConfig, *, num_classes: int, label_smoothing: float, seed: int) -> Mixing | None:
    """The mixing that ``data.augment`` asks for; None if it asks for none."""
    if not augment.mixup and not augment.cutmix:
        return None
    return Mixing(augment, num_classes=num_classes, label_smoothing=label_smoothing, seed=seed)


class Mixing:
    """Blends each batch with itself in reverse order: the whole batch by mixup, or the whole batch by CutMix."""

    def __init__(self, augment: AugmentConfig, *, num_classes: int, label_smoothing: float, seed: int) -> None:
        self._seed = seed
        self._mixup = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, *, step: int, rank: int, micro: int) -> tuple[Tensor, Tensor]:
        """Mix one batch. No value is read back from the device.

        Args:
            images: Normalised floats ``[batch, 3, height, width]``; they are overwritten.
            labels: int64 ``[batch]``.
            step: Optimizer step.
            rank: Of this process among all.
            micro: Index of the forward pass within the step.

        Returns:
            The mixed images, and fp32 targets ``[batch, classes]`` whose rows sum to 1, label smoothing included.

        Raises:
            UserError: if the batch has an odd number of samples.
        """
        if len(images) % 2:
            raise UserError(f"mixup and CutMix blend pictures in pairs, but this batch has {len(images)} of them.")
        with _numpy_seeded(self._seed, step, rank, micro):
            mixed, targets = self._mixup(images, labels)
        return mixed, targets


@contextmanager
def _numpy_seeded(*words: int) -> Iterator[None]:
    """Let numpy's global generator follow from a few integers, and put it back afterwards."""
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence(words).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)
