"""Recipes: which parameters train, and how a batch becomes a loss. One small file each.

A recipe never sees the engine, the loop or a checkpoint. What it calls ``forward`` is its own module behind the engine:
calling it is the only way to compute with weights that may be sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import Target

Forward = Callable[..., Any]
"""The trained module's own forward."""
Scorer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From inputs and targets to two sums over the samples, fp32 scalars on the device: correct ones, and losses."""


@dataclass(frozen=True)
class Pull:
    """A term ``strength / 2 |theta - anchor|^2`` of the loss, on one parameter (L2-SP, arXiv 1802.01483).

    The engine adds its gradient to the masters, where they lie, after clipping.
    """

    strength: float
    towards_start: bool
    """Whether the anchor is the value that training starts from; else zero."""


class Recipe(Protocol):
    """What the stage, the loop and the engine need to know of an objective."""

    trains_head: bool
    """Whether the trained module has a classification head, started from theta_0's."""
    needs_head: bool
    """Whether theta_0 is a classifier: classes and prompts are needed to make its head."""
    inputs: Literal["images", "features"]
    """What the module sees: pictures, or the features of theta_0's visual tower."""
    compares_within_batch: bool
    """Whether the loss of a sample depends on the others of its forward pass: how the batch is split then matters."""

    def module(self, zero_shot: Path) -> nn.Module:
        """The module to train, with theta_0's weights and open_clip's names; what has ``requires_grad`` is trained."""

    def target(self, zero_shot: Path) -> Target:
        """What is learnt from a sample."""

    def loss(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of a forward pass's batch on this rank.

        The engine averages gradients over ranks and forward passes.
        """

    def pull(self, name: str) -> Pull | None:
        """What pulls on the parameter of this name."""

    def validation_target(self, zero_shot: Path) -> Target:
        """What a held-out sample is scored by."""

    def scorer(self, forward: Forward, zero_shot: Path, *, device: torch.device) -> Scorer:
        """How held-out batches are scored. Made anew before each pass, on every rank, without gradients."""


def make_recipe(config: FinetuneConfig, *, head: Path | None = None) -> Recipe:
    """The recipe that ``finetune.recipe`` names.

    Args:
        config: Its settings.
        head: With ``lp_ft``, the folder of the head that its first phase wrote: the second phase starts from it.
    """
    from wiseft_dist.finetune.recipes.contrastive import Contrastive
    from wiseft_dist.finetune.recipes.end_to_end import EndToEnd
    from wiseft_dist.finetune.recipes.flyp import Flyp
    from wiseft_dist.finetune.recipes.l2_sp import L2Sp
    from wiseft_dist.finetune.recipes.linear_head import LinearHead
    from wiseft_dist.finetune.recipes.lp_ft import LpFt

    recipes: dict[str, Callable[[], Recipe]] = {
        "end_to_end": lambda: EndToEnd(config),
        "linear_head": lambda: LinearHead(config),
        "lp_ft": lambda: LpFt(config, head),
        "flyp": Flyp,
        "l2_sp": lambda: L2Sp(config),
        "contrastive": Contrastive,
    }
    return recipes[config.recipe]()
