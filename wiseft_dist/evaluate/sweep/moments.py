"""Sums over the features of theta_0 and theta_1, taken on the device, for their linear CKA."""

from __future__ import annotations

from torch import Tensor

from wiseft_dist.evaluate.predictions import FeatureMoments


class MomentSums:
    """Adds up :class:`FeatureMoments` batch by batch, in fp64, without waiting for the device."""

    def __init__(self) -> None:
        self._num_samples = 0
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count a batch's features, ``[batch, embedding]`` of theta_0 and of theta_1."""
        x, y = x.double(), y.double()
        sums = [x.sum(dim=0), y.sum(dim=0), x.T @ x, y.T @ y, x.T @ y]
        self._sums = [total.add_(new) for total, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._num_samples += len(x)

    def moments(self) -> FeatureMoments | None:
        """The sums, if there was any batch."""
        if not self._sums:
            return None
        return FeatureMoments(self._num_samples, *(total.cpu().numpy() for total in self._sums))
