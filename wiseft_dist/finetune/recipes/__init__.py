"""Recipes: which parameters train, and how a batch becomes a loss. One small file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import Target


class Recipe(Protocol):
    """What the loop needs to know of an objective."""

    trains_head: bool
    """Whether theta_0 must have a classification head."""

    def module(self, zero_shot: Path) -> nn.Module:
        """The module to train, with theta_0's weights and open_clip's parameter names."""

    def target(self, zero_shot: Path) -> Target:
        """What is learnt from a sample."""

    def loss(self, forward: Callable[..., Any], images: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of a batch; ``forward`` is the module behind the engine."""


def make_recipe(config: FinetuneConfig) -> Recipe:
    """The recipe that ``finetune.recipe`` names."""
    from wiseft_dist.finetune.recipes.contrastive import Contrastive
    from wiseft_dist.finetune.recipes.end_to_end import EndToEnd

    recipes: dict[str, Callable[[FinetuneConfig], Recipe]] = {
        "end_to_end": EndToEnd,
        "contrastive": Contrastive,
    }
    return recipes[config.recipe](config)
