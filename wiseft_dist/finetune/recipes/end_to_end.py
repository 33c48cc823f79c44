"""End-to-end fine-tuning (arXiv 2109.01903, section 2): encoder and head, cross-entropy on the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.loader import Target, class_label
from wiseft_dist.models.classifier import read_classifier


class EndToEnd:
    """The paper's recipe. The text tower and the logit scale are not part of the trained module."""

    trains_head = True

    def __init__(self, config: FinetuneConfig) -> None:
        self._label_smoothing = config.label_smoothing

    def module(self, zero_shot: Path) -> nn.Module:
        """Visual tower and head."""
        return read_classifier(zero_shot)

    def target(self, zero_shot: Path) -> Target:
        """Class labels."""
        return class_label

    def loss(self, forward: Callable[..., Any], images: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits ``[batch, classes]`` and labels ``[batch]``, in fp32."""
        logits = forward(images).float()
        return functional.cross_entropy(logits, targets, label_smoothing=self._label_smoothing)
