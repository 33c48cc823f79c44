"""Model Stock: how far from theta_0 to the mean, from the angle between the fine-tuned models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from wiseft_dist.errors import UserError
from wiseft_dist.merge.methods.endpoint import EndpointMethod, mean, task_vectors
from wiseft_dist.merge.methods.gram import cosines, inner_products
from wiseft_dist.merge.methods.method import Slices
from wiseft_dist.merge.methods.wise import interpolate


class ModelStock(EndpointMethod):
    """``theta_0 + alpha t (mean - theta_0)``, with a ratio t for each tensor.

    ``t = n cos / (1 + (n - 1) cos)``, cos being the mean cosine between the task vectors of two models. Orthogonal
    task vectors are noise (t = 0), parallel ones are signal (t = 1). Obtuse angles, which the paper does not meet,
    count as right ones.

    Source: Model Stock (arXiv 2403.19522), the interpolation ratio of N models.
    """

    name = "model_stock"
    num_passes = 1

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}

    def observe(self, number: int, slices: Slices) -> Tensor:
        """Inner products of the task vectors, fp64."""
        return inner_products(slices, task_vectors)

    def conclude(self, number: int, totals: Mapping[str, Tensor]) -> None:
        """Keep each tensor's ratio.

        Raises:
            UserError: if there is one model only.
        """
        if any(len(products) == 1 for products in totals.values()):
            raise UserError("model_stock needs two fine-tuned models or more: name others, or use wise.")
        self._ratios = {name: _ratio(products) for name, products in totals.items()}

    def endpoint(self, slices: Slices) -> Tensor:
        """The estimate of the models' centre."""
        zero_shot, finetuned = slices.models[0], slices.models[1:]
        merged = torch.empty_like(zero_shot)
        interpolate(zero_shot, mean(iter(finetuned), len(finetuned)), self._ratios[slices.name], out=merged)
        return merged

    def describe(self) -> dict[str, Any]:
        """The ratio t of each tensor."""
        return {"name": self.name, "ratios": self._ratios}


def _ratio(products: Tensor) -> float:
    """The ratio t of n models from their ``n (n + 1) / 2`` inner products."""
    num_models = (math.isqrt(8 * len(products) + 1) - 1) // 2
    cosine = max(0.0, fmean(cosines(products, num_models)))
    return num_models * cosine / (1.0 + (num_models - 1) * cosine)
