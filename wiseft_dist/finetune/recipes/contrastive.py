"""Contrastive training on image-caption pairs (CLIP, arXiv 2103.00020): both towers, negatives from every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from wiseft_dist.data.batch import Target
from wiseft_dist.finetune.recipes import Forward, Pull, Scorer
from wiseft_dist.finetune.recipes.clip_loss import both_towers, clip_loss, score_pairs
from wiseft_dist.finetune.recipes.prompts import CaptionTokens


class Contrastive:
    """The CLIP objective; the engine's module is the whole open_clip model."""

    trains_head = False
    needs_head = False
    inputs: Literal["images", "features"] = "images"
    compares_within_batch = True

    def module(self, zero_shot: Path) -> nn.Module:
        """Both towers and the logit scale.

        Raises:
            UserError: if the model was made for another loss.
        """
        return both_towers(zero_shot, "contrastive")

    def target(self, zero_shot: Path) -> Target:
        """Tokens of the caption."""
        return CaptionTokens(zero_shot)

    def loss(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
        """Symmetric cross-entropy over the pairs of all ranks; of one micro batch each, where gradients accumulate."""
        return clip_loss(*forward(inputs, targets))

    def pull(self, name: str) -> Pull | None:
        """Nothing pulls."""
        return None

    def validation_target(self, zero_shot: Path) -> Target:
        """Tokens of the caption."""
        return CaptionTokens(zero_shot)

    def scorer(self, forward: Forward, zero_shot: Path, *, device: torch.device) -> Scorer:
        """Each image among the captions of its own batch: both numbers depend on the batch size."""
        return lambda images, tokens: score_pairs(*forward(images, tokens))
