"""Fisher-weighted averaging: each weight from the models that are sure of it."""

from __future__ import annotations

import torch
from torch import Tensor

from wiseft_dist.merge.methods.endpoint import mean
from wiseft_dist.merge.methods.method import Method, Slices
from wiseft_dist.merge.methods.wise import interpolate


class Fisher(Method):
    """The mean of all models, weighted by ``(1 - alpha) F_0`` and ``alpha F_i / n``, element by element.

    Where all weights are zero it is the straight line from theta_0 to the mean of the fine-tuned models.

    Source: Merging models with Fisher-weighted averaging (arXiv 2111.09832), Fisher merging.
    """

    name = "fisher"

    def mix(self, slices: Slices, alpha: float, out: Tensor) -> None:
        """As :meth:`Method.mix`; with one fine-tuned model alpha = 1 gives it bit for bit."""
        zero_shot, finetuned = slices.models[0], slices.models[1:]
        if alpha == 0.0 or (alpha == 1.0 and len(finetuned) == 1):
            out.copy_(slices.models[round(alpha)])
            return
        line = torch.empty_like(zero_shot)
        interpolate(zero_shot, mean(iter(finetuned), len(finetuned)), alpha, out=line)
        weight = slices.fisher[0].double() * (1.0 - alpha)
        total = zero_shot * weight
        for model, fisher in zip(finetuned, slices.fisher[1:], strict=True):
            share = fisher.double() * (alpha / len(finetuned))
            weight += share
            total += model * share
        out.copy_(torch.where(weight == 0, line, (total / weight).float()))
