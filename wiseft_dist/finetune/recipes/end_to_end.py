"""End-to-end fine-tuning (arXiv 2109.01903, section 2): encoder and head, cross-entropy on the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import ClassLabel, Target
from wiseft_dist.models.classifier import read_classifier, read_vocabulary


class EndToEnd:
    """The paper's recipe. The text tower and the logit scale are not part of the trained module."""

    trains_head = True

    def __init__(self, config: FinetuneConfig) -> None:
        self._label_smoothing = config.label_smoothing

    def module(self, zero_shot: Path) -> nn.Module:
        """Visual tower and head."""
        return read_classifier(zero_shot)

    def target(self, zero_shot: Path) -> Target:
        """Class labels, of the classes that the head has."""
        return ClassLabel(len(read_vocabulary(zero_shot).classnames))

    def loss(self, forward: Callable[..., Any], images: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in fp32 of logits ``[batch, classes]`` and targets.

        Targets are labels, int64 ``[batch]``, or distributions, float ``[batch, classes]``: those that mixing made, in
        which labels are smoothed already.
        """
        logits = forward(images).float()
        smoothing = 0.0 if targets.is_floating_point() else self._label_smoothing
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing)
