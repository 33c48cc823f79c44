"""Ensembles in memory: theta_0 and theta_1 held once, any theta_alpha set in place in a live module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wiseft_dist.merge.methods import interpolate
from wiseft_dist.merge.weights import Weights


class Ensemble:
    """A module whose weights can be set to any mixture of two models.

    With a module in fp32 the weights are bit-identical to those of a written ensemble.

    Args:
        module: Receives the weights; its device and dtype decide where and how the mixture is stored.
        zero_shot: theta_0 by the module's names, on the module's device, in the masters' dtype.
        finetuned: theta_1, likewise.
    """

    def __init__(self, module: nn.Module, zero_shot: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]) -> None:
        self.module = module
        self._targets = [
            (target, zero_shot[name], finetuned[name]) for name, target in module.state_dict(keep_vars=True).items()
        ]

    @torch.no_grad()
    def set_alpha(self, alpha: float) -> None:
        """Make the module theta_alpha."""
        for target, zero_shot, finetuned in self._targets:
            interpolate(zero_shot, finetuned, alpha, out=target.data)


def load_weights(weights: Weights, module: nn.Module, *, device: torch.device) -> dict[str, Tensor]:
    """The tensors that a module needs, in their stored dtype, on a device."""
    return {name: weights.read(name).reshape(target.shape).to(device) for name, target in module.state_dict().items()}
