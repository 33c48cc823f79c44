"""Ensembles in memory: theta_0 and theta_1 held once, any theta_alpha set in place in a live module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wiseft_dist.merge.methods.wise import interpolate
from wiseft_dist.weights.records import Weights


class Ensemble:
    """A module whose weights can be set to any mixture of two models.

    With a module in fp32 the weights are bit-identical to those of a written ensemble.

    Args:
        module: Receives the weights; its device and dtype decide where and how the mixture is stored.
        zero_shot: theta_0 by the module's names, on the module's device, in the masters' dtype.
        finetuned: theta_1, likewise; a tensor that is theta_0's own object is set once and never mixed.
    """

    def __init__(self, module: nn.Module, zero_shot: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]) -> None:
        self.module = module
        self._targets = []
        for name, target in module.state_dict(keep_vars=True).items():
            if finetuned[name] is zero_shot[name]:
                target.data.copy_(zero_shot[name])
            else:
                self._targets.append((target, zero_shot[name], finetuned[name]))

    @torch.no_grad()
    def set_alpha(self, alpha: float) -> None:
        """Make the module theta_alpha."""
        for target, zero_shot, finetuned in self._targets:
            interpolate(zero_shot, finetuned, alpha, out=target.data)


def load_weights(
    weights: Weights, module: nn.Module, *, device: torch.device, carried: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors that a module needs, in their stored dtype, on a device.

    Args:
        weights: Where they are read from.
        module: Decides which, and their shapes.
        device: Where they go.
        carried: Tensors to take as they are, in place of those that ``weights`` has not.
    """
    loaded = {} if carried is None else {name: tensor for name, tensor in carried.items() if name not in weights}
    for name, target in module.state_dict().items():
        if name not in loaded:
            loaded[name] = weights.read(name).reshape(target.shape).to(device)
    return loaded
