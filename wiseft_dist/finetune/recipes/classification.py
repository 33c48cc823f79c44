"""What the recipes with a classification head have in common: labels, cross-entropy and top-1."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import ClassLabel, Target
from wiseft_dist.finetune.recipes import Forward, Pull, Scorer
from wiseft_dist.models.classifier import read_vocabulary


class Classification:
    """Cross-entropy of the trained module's logits; each recipe adds the module."""

    trains_head = True
    needs_head = True
    inputs: Literal["images", "features"] = "images"
    compares_within_batch = False

    def __init__(self, config: FinetuneConfig) -> None:
        self._label_smoothing = config.label_smoothing

    def target(self, zero_shot: Path) -> Target:
        """Class labels, of the classes that the head has."""
        return ClassLabel(len(read_vocabulary(zero_shot).classnames))

    def loss(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in fp32 of logits ``[batch, classes]`` and targets.

        Targets are labels, int64 ``[batch]``, or distributions, float ``[batch, classes]``: those that mixing made, in
        which labels are smoothed already.
        """
        logits = forward(inputs).float()
        smoothing = 0.0 if targets.is_floating_point() else self._label_smoothing
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing)

    def pull(self, name: str) -> Pull | None:
        """Nothing pulls."""
        return None

    def validation_target(self, zero_shot: Path) -> Target:
        """Class labels."""
        return self.target(zero_shot)

    def scorer(self, forward: Forward, zero_shot: Path, *, device: torch.device) -> Scorer:
        """Top-1 and the cross-entropy with the labels as they are, not smoothed."""
        return lambda inputs, labels: score_logits(forward(inputs), labels)


def score_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many of ``[batch, classes]`` logits are largest at their label, and their summed cross-entropy."""
    logits = logits.float()
    correct = (logits.argmax(dim=1) == labels).float().sum()
    return correct, functional.cross_entropy(logits, labels, reduction="sum")
