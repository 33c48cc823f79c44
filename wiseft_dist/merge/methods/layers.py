"""An alpha for each tensor: by patterns of names, and by depth."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wiseft_dist.config.sections import LayerAlpha
from wiseft_dist.merge.methods.lines import depth_factors
from wiseft_dist.merge.methods.method import Method, Slices


class Layers(Method):
    """Another method with an alpha for each tensor. At alpha = 0 the ensemble stays theta_0.

    Args:
        method: What alpha is given to.
        layers: By pattern of tensor names, of which the first that matches counts: an alpha of its own, or a factor.
        lines: The factor of the shallowest layer (see :func:`depth_factors`); None: 1 for every layer. It multiplies
            the factors of ``layers``, and leaves tensors with an alpha of their own alone.
    """

    def __init__(self, method: Method, layers: Mapping[str, LayerAlpha], lines: float | None = None) -> None:
        self.name, self.num_passes, self.keeps_equal = method.name, method.num_passes, method.keeps_equal
        self._method, self._layers, self._lines = method, layers, lines
        self._fixed: dict[str, float] = {}
        self._factors: dict[str, float] = {}

    def begin(self, sizes: Mapping[str, int]) -> None:
        """As :meth:`Method.begin`; decides on the alpha of each tensor."""
        self._method.begin(sizes)
        rules = {name: _first_match(name, self._layers) for name in sizes}
        self._fixed = {name: rule.alpha for name, rule in rules.items() if rule and rule.alpha is not None}
        if self._lines is None:
            self._factors = {name: 1.0 for name in sizes if name not in self._fixed}
        else:
            self._factors = depth_factors(sizes.keys(), self._lines, own=self._fixed)
        for name in self._factors:
            if (rule := rules[name]) and rule.scale is not None:
                self._factors[name] *= rule.scale

    def observe(self, number: int, slices: Slices) -> Tensor:
        """As the method."""
        return self._method.observe(number, slices)

    def conclude(self, number: int, totals: Mapping[str, Tensor]) -> None:
        """As the method."""
        self._method.conclude(number, totals)

    def prepare(self, slices: Slices) -> Slices:
        """As the method."""
        return self._method.prepare(slices)

    def mix(self, slices: Slices, alpha: float, out: Tensor) -> None:
        """As the method, with the tensor's alpha."""
        self._method.mix(slices, self._alpha(slices.name, alpha), out)

    def describe(self) -> dict[str, Any]:
        """The method's, with what decides each tensor's alpha."""
        return self._method.describe() | {"lines": self._lines, "fixed_alphas": self._fixed, "factors": self._factors}

    def _alpha(self, name: str, alpha: float) -> float:
        if alpha > 0.0 and name in self._fixed:
            return self._fixed[name]
        return min(1.0, alpha * self._factors.get(name, 1.0))


def _first_match(name: str, layers: Mapping[str, LayerAlpha]) -> LayerAlpha | None:
    return next((rule for pattern, rule in layers.items() if fnmatch.fnmatchcase(name, pattern)), None)
