"""Contrastive training on image-caption pairs (CLIP, arXiv 2103.00020): both towers, negatives from every rank."""

from __future__ import annotations

from pathlib import Path

import torch

from wiseft_dist.data.batch import Target
from wiseft_dist.finetune.recipes import Forward, Scorer
from wiseft_dist.finetune.recipes.clip_loss import score_pairs
from wiseft_dist.finetune.recipes.pairs import Pairs
from wiseft_dist.finetune.recipes.prompts import CaptionTokens


class Contrastive(Pairs):
    """The CLIP objective; the engine's module is the whole open_clip model."""

    name = "contrastive"
    needs_head = False

    def target(self, zero_shot: Path) -> Target:
        """Tokens of the caption."""
        return CaptionTokens(zero_shot)

    def validation_target(self, zero_shot: Path) -> Target:
        """Tokens of the caption."""
        return CaptionTokens(zero_shot)

    def scorer(self, forward: Forward, zero_shot: Path, *, device: torch.device) -> Scorer:
        """Each image among the captions of its own batch: both numbers depend on the batch size."""
        return lambda images, tokens: score_pairs(*forward(images, tokens))
