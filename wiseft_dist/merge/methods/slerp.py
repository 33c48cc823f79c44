"""SLERP: the great circle between two models, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wiseft_dist.merge.methods.gram import cosines, inner_products
from wiseft_dist.merge.methods.method import Method, Slices
from wiseft_dist.merge.methods.wise import interpolate

STRAIGHT = 2.0**-24
"""Squared sine of the angle below which the line and the arc agree to the rounding of fp32."""
OPPOSED = -0.9995
"""Cosine below which the arc is as good as arbitrary, and long vectors on it far longer than the models'."""


class Slerp(Method):
    """``(sin((1 - alpha) w) theta_0 + sin(alpha w) theta_1) / sin(w)``, w being the angle between the two tensors.

    Tensors that are zero, parallel or nearly opposed have no such arc, and take the straight line.

    Source: Animating rotation with quaternion curves (Shoemake, SIGGRAPH 1985, doi 10.1145/325165.325242).
    """

    name = "slerp"
    keeps_equal = True
    num_passes = 1

    def __init__(self) -> None:
        self._angles: dict[str, float] = {}

    def observe(self, number: int, slices: Slices) -> Tensor:
        """Inner products of theta_0 and theta_1, fp64 ``[3]``."""
        return inner_products(slices, lambda piece: piece.models[:2])

    def conclude(self, number: int, totals: Mapping[str, Tensor]) -> None:
        """Keep each tensor's angle."""
        self._angles = {name: math.acos(cosines(products, 2)[0]) for name, products in totals.items()}
        for name, products in totals.items():
            if not products[0] or not products[2]:
                self._angles[name] = 0.0

    def mix(self, slices: Slices, alpha: float, out: Tensor) -> None:
        """As :meth:`Method.mix`; alpha = 1 gives theta_1 bit for bit."""
        zero_shot, finetuned = slices.models[:2]
        angle = self._angles[slices.name]
        sine = math.sin(angle)
        if alpha in (0.0, 1.0) or sine * sine < STRAIGHT or math.cos(angle) < OPPOSED:
            interpolate(zero_shot, finetuned, alpha, out=out)
            return
        mixed = torch.mul(zero_shot, math.sin((1.0 - alpha) * angle) / sine)
        torch.add(mixed, finetuned, alpha=math.sin(alpha * angle) / sine, out=mixed)
        out.copy_(mixed)

    def describe(self) -> dict[str, Any]:
        """The angles, in radians."""
        return {"name": self.name, "angles": self._angles}
