"""What the recipes with texts have in common: both towers, and CLIP's loss over the pairs of all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from wiseft_dist.finetune.recipes import Forward, Pull
from wiseft_dist.finetune.recipes.clip_loss import both_towers, clip_loss


class Pairs:
    """Pictures and texts; each recipe adds which texts."""

    name: str
    """As ``finetune.recipe`` has it."""
    trains_head = False
    inputs: Literal["images", "features"] = "images"
    compares_within_batch = True

    def module(self, zero_shot: Path) -> nn.Module:
        """Both towers and the logit scale.

        Raises:
            UserError: if the model was made for another loss.
        """
        return both_towers(zero_shot, self.name)

    def loss(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
        """Symmetric cross-entropy over the pairs of all ranks; of one micro batch each, where gradients accumulate."""
        return clip_loss(*forward(inputs, targets))

    def pull(self, name: str) -> Pull | None:
        """Nothing pulls."""
        return None
