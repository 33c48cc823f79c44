"""Methods that make one merged model; their ensembles lie on the straight line from theta_0 to it, as in WiSE-FT."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from wiseft_dist.merge.methods.method import Method, Slices
from wiseft_dist.merge.methods.wise import interpolate


class EndpointMethod(Method):
    """``theta_0 + alpha (merged - theta_0)``, with the merged model in fp32."""

    keeps_equal = True

    @abstractmethod
    def endpoint(self, slices: Slices) -> Tensor:
        """Elements of the merged model, fp32. Where all models are equal they are theta_0's, bit for bit."""

    def prepare(self, slices: Slices) -> Slices:
        """As :meth:`Method.prepare`: the merged model is made once, and the fine-tuned ones are let go."""
        return replace(slices, models=slices.models[:1], endpoint=self.endpoint(slices))

    def mix(self, slices: Slices, alpha: float, out: Tensor) -> None:
        """As :meth:`Method.mix`; alpha = 1 gives the merged model bit for bit."""
        if alpha == 0.0:
            out.copy_(slices.models[0])
        else:
            endpoint = self.endpoint(slices) if slices.endpoint is None else slices.endpoint
            interpolate(slices.models[0], endpoint, alpha, out=out)


def mean(models: Iterator[Tensor], count: int) -> Tensor:
    """The mean of ``count`` fp32 tensors in fp32, added up in fp64 in their order."""
    total = next(models).double()
    for model in models:
        total += model
    return (total / count).float()


def task_vectors(slices: Slices) -> Iterator[Tensor]:
    """``theta_i - theta_0`` of each fine-tuned model, in fp64."""
    zero_shot = slices.models[0].double()
    for model in slices.models[1:]:
        yield model.double() - zero_shot


def add_task_vector(zero_shot: Tensor, task_vector: Tensor) -> Tensor:
    """The sum in fp32, from fp64. Adding nothing keeps the bits: -0.0 + 0.0 would be 0.0."""
    return torch.where(task_vector == 0, zero_shot, (zero_shot + task_vector).float())
