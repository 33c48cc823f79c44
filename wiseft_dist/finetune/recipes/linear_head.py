"""The linear classifier (LC; arXiv 2109.01903, section 2): the head alone, on features that are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from wiseft_dist.finetune.recipes.classification import Classification
from wiseft_dist.models.classifier import read_head


class HeadOnly(nn.Module):
    """A classifier without its visual tower: theta_1 has theta_0's. Parameter names are those of the whole."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits fp32 ``[batch, classes]`` of normalised embeddings ``[batch, embedding]``."""
        logits: Tensor = self.head(features)
        return logits


class LinearHead(Classification):
    """Cross-entropy on features of theta_0's visual tower, which pictures without augmentation have."""

    inputs: Literal["images", "features"] = "features"

    def module(self, zero_shot: Path) -> HeadOnly:
        """The head."""
        return HeadOnly(read_head(zero_shot))
