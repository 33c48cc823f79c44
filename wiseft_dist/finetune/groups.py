"""Parameter groups: what shares a weight decay, a factor on the learning rate and a pull, by the parameters' names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from wiseft_dist.config import OptimizerConfig
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.recipes import Pull

BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks|layers?|stages)\.?(\d+)\.")
"""A numbered block of a tower: open_clip's, timm's and Hugging Face's names, and the stages of ResNets."""
STEM = re.compile(
    r"(?:^|\.)(?:conv1|bn1|class_embedding|positional_embedding|token_embedding|ln_pre|patch_embed|cls_token|pos_embed"
    r"|norm_pre|embeddings|stem)(?:\.|$)"
)
"""What comes before the first block."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters that the optimizer treats alike."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    lr_scale: float
    """Factor on the schedule's learning rate."""
    pull: Pull | None

    def as_dict(self) -> dict[str, Any]:
        """As torch's optimizers take it."""
        return {
            "params": list(self.parameters),
            "weight_decay": self.weight_decay,
            "lr_scale": self.lr_scale,
            "pull": self.pull.strength if self.pull else 0.0,
            "towards_start": self.pull is not None and self.pull.towards_start,
        }


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, pull: Callable[[str], Pull | None]
) -> list[ParameterGroup]:
    """Sort the trained parameters into as few groups as the settings allow.

    Without ``decay_biases_and_norms`` everything of fewer than two dimensions is left without weight decay, as in
    open_clip: biases, normalisation weights, scales and the class embedding.

    Raises:
        UserError: if nothing is trained, or ``layer_decay`` is set and the tower's layers have no known names.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise UserError("finetune.recipe: the model has no parameter that this recipe trains.")
    scales = lr_scales(list(trained), config.layer_decay)
    members: dict[tuple[float, float, Pull | None], list[str]] = {}
    for name, parameter in trained.items():
        decays = config.decay_biases_and_norms or parameter.ndim >= 2
        key = (config.weight_decay if decays else 0.0, scales[name], pull(name))
        members.setdefault(key, []).append(name)
    return [
        ParameterGroup(tuple(names), tuple(trained[name] for name in names), decay, scale, pulled)
        for (decay, scale, pulled), names in members.items()
    ]


def lr_scales(names: list[str], layer_decay: float) -> dict[str, float]:
    """The factor on each parameter's learning rate: ``layer_decay`` to the number of layers above it.

    A tower's blocks are its layers; embeddings lie below the first, and the last norm, the projection, the head and
    the logit scale above the last (BEiT, arXiv 2106.08254, section 3.2).
    """
    if layer_decay == 1.0:
        return dict.fromkeys(names, 1.0)
    blocks = {name: int(found[1]) for name in names if (found := BLOCK.search(name))}
    layers: dict[str, list[int]] = {}
    for tower in {_tower(name) for name in blocks}:
        layers[tower] = sorted({number for name, number in blocks.items() if _tower(name) == tower})
    scales = {}
    for name in names:
        tower = _tower(name)
        if name not in blocks and STEM.search(name) is None:
            scales[name] = 1.0
            continue
        if tower not in layers:
            raise UserError(
                f"finetune.optimizer.layer_decay is {layer_decay:g}, but the tower of {name} has no layers of known "
                "names: set it to 1."
            )
        below = layers[tower].index(blocks[name]) + 1 if name in blocks else 0
        scales[name] = layer_decay ** (len(layers[tower]) + 1 - below)
    return scales


def _tower(name: str) -> str:
    return "visual" if name.startswith("visual.") else "text"
