"""End-to-end fine-tuning (arXiv 2109.01903, section 2): encoder and head, cross-entropy on the reference."""

from __future__ import annotations

from pathlib import Path

from wiseft_dist.finetune.recipes.classification import Classification
from wiseft_dist.models.classifier import Classifier, read_classifier


class EndToEnd(Classification):
    """The paper's recipe. The text tower and the logit scale are not part of the trained module."""

    def module(self, zero_shot: Path) -> Classifier:
        """Visual tower and head."""
        return read_classifier(zero_shot)
