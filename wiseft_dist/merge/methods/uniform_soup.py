"""Model soups: the mean of several fine-tuned models."""

from __future__ import annotations

from torch import Tensor

from wiseft_dist.merge.methods.endpoint import EndpointMethod, mean
from wiseft_dist.merge.methods.method import Slices


class UniformSoup(EndpointMethod):
    """``theta_0 + alpha (mean(theta_1, ..., theta_n) - theta_0)``; with one model it is WiSE-FT to the bit.

    Source: Model soups (arXiv 2203.05482), table 2; from theta_0 to the soup as in WiSE-FT.

    Args:
        name: ``greedy_soup`` where the models were chosen greedily (recipe 1 of the paper): the arithmetic is the same.
    """

    def __init__(self, name: str = "uniform_soup") -> None:
        self.name = name

    def endpoint(self, slices: Slices) -> Tensor:
        """The mean of the fine-tuned models."""
        finetuned = slices.models[1:]
        return mean(iter(finetuned), len(finetuned))
